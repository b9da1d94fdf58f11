//! Qwen 3.5, text only: three layers by the gated delta rule, then one of gated attention.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    gated_delta,
    metadata::Metadata,
};
use crate::spec::{Activation, DeltaGates, KeySharing, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    gated_delta::check_sections(m, &layers)?;
    gated_delta::put(m, &mut layers, KeySharing::InTurn, DeltaGates::Apart)?;
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
