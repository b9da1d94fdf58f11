//! Qwen 3: norms on each head of q and k.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}

/// What VL files have of text: each token's three positions are one, so the sections that they rotate say nothing.
pub(super) fn text_of_vision(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    m.pass_over("rope.dimension_sections");
    decoder(m)
}
