//! StarCoder 2: layer norms, a plain FFN with GELU, biases everywhere.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, Bias, Ffn, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::GeluTanh;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let (norm, inner) = (dense::layer_norm(m)?, dense::inner(m)?);
    let ffn = |layer: usize| Ffn::Plain { inner: inner[layer], activation, bias: Bias::Present };
    let mut layers = dense::layers_with(m, &plain, norm, ffn)?;
    for attention in dense::attentions(&mut layers) {
        (attention.qkv_bias, attention.output_bias) = (Bias::Present, Bias::Present);
    }
    Ok(Decoder::plain(norm, layers))
}
