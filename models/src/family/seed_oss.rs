//! Seed-OSS: a Llama rotated in halves, with biases on q, k and v; the norm before the FFN is named after the attention.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    Ok(Decoder::plain(dense::rms_norm(m)?, dense::layers(m, &plain)?))
}
