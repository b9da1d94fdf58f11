//! Qwen 1.5 and 2 with experts: one of them shared by all tokens; biases on q, k and v.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Bias, Ffn, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let routing = Routing::plain(Scoring::Softmax, Weighting::AsScored);
    let mut experts = experts::spec(m, experts::width(m)?, activation, routing)?;
    experts.shared = experts::shared_with_gate(m, experts.activation)?;
    let norm = dense::rms_norm(m)?;
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    dense::attentions(&mut layers).for_each(|attention| attention.qkv_bias = Bias::Present);
    Ok(Decoder::plain(norm, layers))
}
