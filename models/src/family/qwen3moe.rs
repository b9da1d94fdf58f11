//! Qwen 3 with experts: norms on each head of q and k.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Ffn, QkNorm, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let experts = experts::spec(m, experts::width(m)?, activation, routing)?;
    let norm = dense::rms_norm(m)?;
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    Ok(Decoder::plain(norm, layers))
}

/// What VL files have of text: each token's three positions are one, so the sections that they rotate say nothing.
pub(super) fn text_of_vision(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    m.pass_over("rope.dimension_sections");
    decoder(m)
}
