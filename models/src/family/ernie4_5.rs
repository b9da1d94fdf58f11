//! ERNIE 4.5: a Llama.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    Ok(Decoder::plain(dense::rms_norm(m)?, dense::layers(m, &plain)?))
}
