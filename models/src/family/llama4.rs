//! Llama 4: of four layers three attend inside chunks and know positions, with norms on q and k in all but the largest; the
//! fourth attends to all, and its queries grow with their position. Experts on every layer or every other, beside a shared one.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{CONTEXT_MAX, LAYERS_MAX, Metadata, ROPE_BASE},
};
use crate::spec::{
    Activation, Bias, Ffn, QkNorm, RopePairing, Routing, Scoring, SharedExpert, SharedGate, Temperature, Weighed,
    Weighting, Window,
};

/// Positions of a chunk, whatever the file says, and of a step of the queries' growth.
const CHUNK: usize = 8192;
/// Every how many layers one attends to all.
const PERIOD: usize = 4;
/// Experts of the largest one (Maverick), which is told by them.
const EXPERTS_LARGEST: usize = 128;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let routing = Routing { weighed: Weighed::Input, ..Routing::plain(Scoring::Sigmoid, Weighting::AsScored) };
    let mut mixture = experts::spec(m, experts::width(m)?, plain.activation, routing)?;
    mixture.shared =
        Some(SharedExpert { inner: mixture.inner, activation: mixture.activation, gate: SharedGate::None });
    let step = m.count("interleave_moe_layer_step", 0..=LAYERS_MAX)?;
    let (norm, inner) = (dense::rms_norm(m)?, dense::inner(m)?);
    let mut layers = dense::layers_with(m, &plain, norm, |layer| match (layer + 1).checked_rem(step) {
        Some(0) => Ffn::Experts(mixture.clone()),
        Some(_) | None => Ffn::Gated { inner: inner[layer], activation: plain.activation, bias: Bias::None },
    })?;
    // 0 would be no chunks at all; no model with experts has that.
    m.count_or("attention.sliding_window", CHUNK, 1..=CONTEXT_MAX)?;
    m.count_or("attention.sliding_window_pattern", PERIOD, PERIOD..=PERIOD)?;
    let chunked_base = m.has("rope.freq_base_swa").then(|| m.float("rope.freq_base_swa", ROPE_BASE)).transpose()?;
    for (nth, attention) in (1..).zip(dense::attentions(&mut layers)) {
        if usize::is_multiple_of(nth, PERIOD) {
            attention.rope = None;
            attention.temperature = Some(Temperature { scale: 0.1, offset: 1, length: CHUNK });
            continue;
        }
        attention.window = Window::Chunked(CHUNK);
        if mixture.count != EXPERTS_LARGEST {
            attention.qk_norm = QkNorm::PerHeadRotatedBare;
        }
        if let (Some(rope), Some(base)) = (&mut attention.rope, chunked_base) {
            rope.base = base;
        }
    }
    Ok(Decoder::plain(norm, layers))
}
