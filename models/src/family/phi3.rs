//! Phi 3, 3.5 and 4: q, k and v in one matrix, gate and up in another; factors for long contexts.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::{CONTEXT_MAX, Metadata},
};
use crate::spec::{Activation, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let layers = dense::layers(m, &plain)?;
    // Read, not obeyed: what files say of it is not to be relied on, and llama.cpp, which they are made for, ignores it.
    m.count_or("attention.sliding_window", 0, 0..=CONTEXT_MAX)?;
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
