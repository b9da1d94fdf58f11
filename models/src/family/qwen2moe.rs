//! Qwen 1.5 and 2 with experts: one of them shared by all tokens; biases on q, k and v.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{Metadata, WIDTH_MAX},
};
use crate::spec::{Activation, Bias, Ffn, RopePairing, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let activation = Activation::Silu;
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation };
    let mut experts = dense::experts(m, dense::expert_width(m)?, activation, Weighting::OfAll)?;
    const SHARED: &str = "expert_shared_feed_forward_length";
    experts.shared = Some(if m.has(SHARED) { m.count(SHARED, 1..=WIDTH_MAX)? } else { dense::inner(m)?[0] });
    let norm = dense::rms_norm(m)?;
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    dense::attentions(&mut layers).for_each(|attention| attention.qkv_bias = Bias::Present);
    Ok(Decoder::plain(norm, layers))
}
