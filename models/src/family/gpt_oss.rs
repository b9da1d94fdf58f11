//! gpt-oss: experts with biases and a clamped gate, attention sinks, a sliding window on every other layer.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Bias, Ffn, RopePairing, Routing, Scoring, Sinks, Weighting};

/// How the file says that weights are a softmax over the experts used.
const OF_USED: usize = 3;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    m.count_or("expert_gating_func", OF_USED, OF_USED..=OF_USED)?;
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let activation = Activation::SiluClamped;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let mut experts = experts::spec(m, experts::width(m)?, activation, routing)?;
    experts.bias = Bias::Present;
    let norm = dense::rms_norm(m)?;
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    dense::windows(m, &mut layers, None, 2)?;
    dense::attentions(&mut layers).for_each(|attention| attention.sinks = Sinks::PerHead);
    Ok(Decoder::plain(norm, layers))
}
