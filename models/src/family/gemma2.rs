//! Gemma 2: every other layer has a sliding window; norms around each half; soft caps on scores and logits.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, NormPlacement, RopePairing};

/// The 27B is told by its depth: it alone scales q·k by the hidden width per head.
const LAYERS_27B: usize = 46;

const CAP: RangeInclusive<f32> = 1e-3..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::GeluTanh };
    let mut layers = dense::layers(m, &plain)?;
    dense::windows(m, &mut layers, Some(4096), 2)?;
    let hidden = m.hidden()? as f32;
    let score_cap = m.float_or("attn_logit_softcapping", 50.0, CAP)?;
    let logit_cap = Some(m.float_or("final_logit_softcapping", 30.0, CAP)?);
    let count = layers.len();
    for attention in dense::attentions(&mut layers) {
        attention.soft_cap = Some(score_cap);
        if count == LAYERS_27B {
            attention.scale = 1.0 / (hidden / attention.heads as f32).sqrt();
        }
    }
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::PreAndPost);
    Ok(Decoder { embedding_scale: hidden.sqrt(), logit_cap, ..Decoder::plain(dense::rms_norm(m)?, layers) })
}
