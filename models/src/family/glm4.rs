//! GLM-4 (0414): norms around each half, half of each head rotated, gate and up in one matrix.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, NormPlacement, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::PreAndPost);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
