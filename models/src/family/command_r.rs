//! Command R and R7B: one layer norm before both halves, which stand side by side; logits scaled; R7B has windows on three layers
//! of four, and knows positions in these alone.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, NormPlacement, RopePairing};

const SCALE: RangeInclusive<f32> = 1e-6..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let norm = dense::layer_norm_unbiased(m)?;
    let mut layers = dense::gated_layers(m, &plain, norm)?;
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::Beside);
    let logit_scale = m.float_or("logit_scale", 1.0, SCALE)?;
    Ok(Decoder { logit_scale, ..Decoder::plain(norm, layers) })
}

/// What R7B does differently.
pub(super) fn windowed(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let mut decoder = decoder(m)?;
    dense::positions_in_windows(m, &mut decoder.layers, None, 4)?;
    Ok(decoder)
}
