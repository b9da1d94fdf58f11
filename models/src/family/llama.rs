//! Llama and what is shaped like it: Mistral, Mixtral with its experts, SmolLM, TinyLlama.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Ffn, LayerSpec, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    Ok(Decoder::plain(dense::rms_norm(m)?, layers(m)?))
}

/// The layers, dense or with experts.
pub(super) fn layers(m: &Metadata<'_>) -> Result<Vec<LayerSpec>, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation };
    if m.count_or("expert_count", 0, 0..=usize::MAX)? == 0 {
        return dense::layers(m, &plain);
    }
    let inner = dense::inner(m)?;
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let experts = experts::spec(m, inner[0], activation, routing)?;
    dense::layers_with(m, &plain, dense::rms_norm(m)?, |layer| {
        let mut experts = experts.clone();
        experts.inner = inner[layer];
        Ffn::Experts(experts)
    })
}
