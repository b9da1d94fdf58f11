//! Gemma 3, text only: five layers with a sliding window, then one that attends to all; norms around each half.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{Metadata, ROPE_BASE},
};
use crate::spec::{Activation, NormPlacement, QkNorm, RopePairing, RopeScaling};

/// The 27B is told by its depth: it alone scales q·k by the hidden width per head.
const LAYERS_27B: usize = 62;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 1e6, activation: Activation::GeluTanh };
    let mut layers = dense::layers(m, &plain)?;
    let windowed = dense::windows(m, &mut layers, None, 6)?;
    let hidden = m.hidden()? as f32;
    let local_base = m.float_or("rope.freq_base_swa", 10_000.0, ROPE_BASE)?;
    let count = layers.len();
    for (attention, windowed) in dense::attentions(&mut layers).zip(windowed) {
        attention.qk_norm = QkNorm::PerHead;
        if count == LAYERS_27B {
            attention.scale = 1.0 / (hidden / attention.heads as f32).sqrt();
        }
        if let Some(rope) = attention.rope.as_mut().filter(|_| windowed) {
            (rope.base, rope.scaling) = (local_base, RopeScaling::None);
        }
    }
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::PreAndPost);
    Ok(Decoder { embedding_scale: hidden.sqrt(), ..Decoder::plain(dense::rms_norm(m)?, layers) })
}
