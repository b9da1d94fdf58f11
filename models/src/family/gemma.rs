//! Gemma: a Llama with GELU, and embeddings scaled by the root of their width.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::GeluTanh };
    let embedding_scale = (m.hidden()? as f32).sqrt();
    Ok(Decoder { embedding_scale, ..Decoder::plain(dense::rms_norm(m)?, dense::layers(m, &plain)?) })
}
