//! Gemma 2: every other layer has a sliding window; norms around each half; soft caps on scores and logits.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{CONTEXT_MAX, Metadata},
};
use crate::spec::{Activation, NormPlacement, RopePairing, Window};

/// The 27B is told by its depth: it alone scales q·k by the hidden width per head.
const LAYERS_27B: usize = 46;

const CAP: RangeInclusive<f32> = 1e-3..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::GeluTanh };
    let mut layers = dense::layers(m, &plain)?;
    let hidden = m.hidden()?;
    let window = Window::Sliding(m.count_or("attention.sliding_window", 4096, 1..=CONTEXT_MAX)?);
    let score_cap = m.float_or("attn_logit_softcapping", 50.0, CAP)?;
    let logit_cap = Some(m.float_or("final_logit_softcapping", 30.0, CAP)?);
    let count = layers.len();
    for (i, layer) in layers.iter_mut().enumerate() {
        let attention = &mut layer.attention;
        attention.soft_cap = Some(score_cap);
        if count == LAYERS_27B {
            attention.scale = 1.0 / (hidden as f32 / attention.heads as f32).sqrt();
        }
        if i.is_multiple_of(2) {
            attention.window = window;
        }
        layer.norms = NormPlacement::PreAndPost;
    }
    Ok(Decoder { embedding_scale: (hidden as f32).sqrt(), norm_eps: dense::norm_eps(m)?, logit_cap, layers })
}
