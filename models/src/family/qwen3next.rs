//! Qwen 3 Next: three layers by the gated delta rule, then one of gated attention; experts, one of them shared by all tokens.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts, gated_delta,
    metadata::Metadata,
};
use crate::spec::{Activation, DeltaGates, ExpertsSpec, Ffn, KeySharing, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let (mixture, norm) = (shared_and_routed(m)?, dense::rms_norm(m)?);
    let mut layers = dense::layers_with(m, &plain, norm, |layer| Ffn::Experts(experts::in_layer(m, &mixture, layer)))?;
    gated_delta::put(m, &mut layers, KeySharing::Adjacent, DeltaGates::Together)?;
    Ok(Decoder::plain(norm, layers))
}

/// The experts, whose weights sum to 1, and beside them the shared one.
pub(super) fn shared_and_routed(m: &Metadata<'_>) -> Result<ExpertsSpec, ModelError> {
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let mut experts = experts::spec(m, experts::width(m)?, Activation::Silu, routing)?;
    experts.shared = experts::shared_with_gate(m, experts.activation)?;
    Ok(experts)
}
