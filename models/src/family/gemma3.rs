//! Gemma 3, text only: five layers with a sliding window, then one that attends to all; norms around each half.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{CONTEXT_MAX, LAYERS_MAX, Metadata, ROPE_BASE},
};
use crate::spec::{Activation, NormPlacement, QkNorm, RopePairing, RopeScaling, Window};

/// The 27B is told by its depth: it alone scales q·k by the hidden width per head.
const LAYERS_27B: usize = 62;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 1e6, activation: Activation::GeluTanh };
    let mut layers = dense::layers(m, &plain)?;
    let hidden = m.hidden()?;
    let window = Window::Sliding(m.count("attention.sliding_window", 1..=CONTEXT_MAX)?);
    let period = m.count_or("attention.sliding_window_pattern", 6, 1..=LAYERS_MAX)?;
    let local_base = m.float_or("rope.freq_base_swa", 10_000.0, ROPE_BASE)?;
    let count = layers.len();
    for (i, layer) in layers.iter_mut().enumerate() {
        let attention = &mut layer.attention;
        attention.qk_norm = QkNorm::PerHead;
        if count == LAYERS_27B {
            attention.scale = 1.0 / (hidden as f32 / attention.heads as f32).sqrt();
        }
        if !(i + 1).is_multiple_of(period) {
            attention.window = window;
            attention.rope.base = local_base;
            attention.rope.scaling = RopeScaling::None;
        }
        layer.norms = NormPlacement::PreAndPost;
    }
    Ok(Decoder { embedding_scale: (hidden as f32).sqrt(), norm_eps: dense::norm_eps(m)?, logit_cap: None, layers })
}
