//! Granite 3 and 4, dense or with experts: a Llama with scales on the embedding, the scores, what each half adds, and the
//! logits.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, LayerSpec, RopePairing, Routing, Scoring, Weighting};

const SCALE: RangeInclusive<f32> = 1e-6..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    scaled(m, layers(m)?)
}

/// The layers without scales, dense or with experts.
pub(super) fn layers(m: &Metadata<'_>) -> Result<Vec<LayerSpec>, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    if m.count_or("expert_count", 0, 0..=usize::MAX)? == 0 {
        return dense::layers(m, &plain);
    }
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let mut mixture = experts::spec(m, dense::inner(m)?[0], plain.activation, routing)?;
    mixture.shared = experts::shared_by_width(m, mixture.activation)?;
    experts::layers(m, &plain, &mixture)
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
