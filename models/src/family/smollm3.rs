//! SmolLM 3: a Llama whose every fourth layer knows no positions.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    dense::attentions(&mut layers).skip(3).step_by(4).for_each(|attention| attention.rope = None);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
