//! Qwen 1.5 and 2 with experts: one of them shared by all tokens; biases on q, k and v.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{Metadata, WIDTH_MAX},
};
use crate::spec::{Activation, Bias, Ffn, RopePairing, Routing, Scoring, SharedExpert, SharedGate, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let routing = Routing::plain(Scoring::Softmax, Weighting::AsScored);
    let mut experts = experts::spec(m, experts::width(m)?, activation, routing)?;
    const SHARED: &str = "expert_shared_feed_forward_length";
    let inner = if m.has(SHARED) { m.count(SHARED, 1..=WIDTH_MAX)? } else { dense::inner(m)?[0] };
    experts.shared = Some(SharedExpert { inner, gate: SharedGate::Sigmoid });
    let norm = dense::rms_norm(m)?;
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    dense::attentions(&mut layers).for_each(|attention| attention.qkv_bias = Bias::Present);
    Ok(Decoder::plain(norm, layers))
}
