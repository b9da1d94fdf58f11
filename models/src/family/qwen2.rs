//! Qwen 2 and 2.5: biases on q, k and v.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, Bias, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qkv_bias = Bias::Present);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
