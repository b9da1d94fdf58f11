//! Llama and what is shaped like it: Mistral, Mixtral with its experts, SmolLM, TinyLlama.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Ffn, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation };
    let norm = dense::rms_norm(m)?;
    if m.count_or("expert_count", 0, 0..=usize::MAX)? == 0 {
        return Ok(Decoder::plain(norm, dense::layers(m, &plain)?));
    }
    let inner = dense::inner(m)?;
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let experts = experts::spec(m, inner[0], activation, routing)?;
    let layers = dense::layers_with(m, &plain, norm, |layer| {
        let mut experts = experts.clone();
        experts.inner = inner[layer];
        Ffn::Experts(experts)
    })?;
    Ok(Decoder::plain(norm, layers))
}
