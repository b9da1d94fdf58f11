//! Qwen 3.5 with experts, text only: three layers by the gated delta rule, then one of gated attention; one of the experts is
//! shared by all tokens.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts, gated_delta,
    metadata::Metadata,
    qwen3next,
};
use crate::spec::{Activation, DeltaGates, Ffn, KeySharing, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let (mixture, norm) = (qwen3next::shared_and_routed(m)?, dense::rms_norm(m)?);
    let mut layers = dense::layers_with(m, &plain, norm, |layer| Ffn::Experts(experts::in_layer(m, &mixture, layer)))?;
    gated_delta::check_sections(m, &layers)?;
    gated_delta::put(m, &mut layers, KeySharing::InTurn, DeltaGates::Apart)?;
    Ok(Decoder::plain(norm, layers))
}
