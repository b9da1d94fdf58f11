//! Granite 3: a Llama with scales on the embedding, the scores, what each half adds, and the logits.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, LayerSpec, RopePairing};

const SCALE: RangeInclusive<f32> = 1e-6..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    scaled(m, dense::layers(m, &plain)?)
}

/// What scales everywhere in a Granite, and whether its attention knows positions.
pub(super) fn scaled(m: &Metadata<'_>, mut layers: Vec<LayerSpec>) -> Result<Decoder, ModelError> {
    let residual_scale = m.float_or("residual_scale", 1.0, SCALE)?;
    let positions = m.flag_or("rope.scaling.finetuned", true)?;
    layers.iter_mut().for_each(|layer| layer.residual_scale = residual_scale);
    for attention in dense::attentions(&mut layers) {
        attention.scale = m.float_or("attention.scale", attention.scale, SCALE)?;
        if !positions {
            attention.rope = None;
        }
    }
    let embedding_scale = m.float_or("embedding_scale", 1.0, SCALE)?;
    // The file has what the logits are divided by.
    let logit_scale = 1.0 / m.float("logit_scale", SCALE)?;
    Ok(Decoder { embedding_scale, logit_scale, ..Decoder::plain(dense::rms_norm(m)?, layers) })
}
