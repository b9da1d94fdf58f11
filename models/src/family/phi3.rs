//! Phi 3, 3.5 and 4: q, k and v in one matrix, gate and up in another; factors for long contexts.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{CONTEXT_MAX, Metadata},
};
use crate::spec::{Activation, RopePairing, Window};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    // Phi 4 says 0 for none.
    let width = m.count_or("attention.sliding_window", 0, 0..=CONTEXT_MAX)?;
    if width > 0 {
        layers.iter_mut().for_each(|layer| layer.attention.window = Window::Sliding(width));
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
