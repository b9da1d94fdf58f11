//! Qwen 3 Next: three layers by the gated delta rule, then one of gated attention; experts, one of them shared by all tokens.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    gated_delta,
    metadata::{Metadata, WIDTH_MAX},
};
use crate::spec::{Activation, DeltaGates, ExpertsSpec, Ffn, KeySharing, RopePairing, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let (experts, norm) = (experts(m)?, dense::rms_norm(m)?);
    let mut layers = dense::layers_with(m, &plain, norm, |_| Ffn::Experts(experts.clone()))?;
    gated_delta::put(m, &mut layers, KeySharing::Adjacent, DeltaGates::Together)?;
    Ok(Decoder::plain(norm, layers))
}

/// The experts, whose weights sum to 1, and beside them the shared one.
pub(super) fn experts(m: &Metadata<'_>) -> Result<ExpertsSpec, ModelError> {
    const SHARED: &str = "expert_shared_feed_forward_length";
    let mut experts = dense::experts(m, dense::expert_width(m)?, Activation::Silu, Weighting::OfUsed)?;
    experts.shared = Some(if m.has(SHARED) { m.count(SHARED, 1..=WIDTH_MAX)? } else { dense::inner(m)?[0] });
    Ok(experts)
}
