//! DeepSeekMoE 16B: a Llama with many small experts, shared ones, and a dense beginning.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let routing = Routing::plain(Scoring::Softmax, Weighting::AsScored);
    let mut mixture = experts::spec(m, experts::width(m)?, plain.activation, routing)?;
    mixture.shared = experts::shared_by_count(m, mixture.inner, mixture.activation)?;
    Ok(Decoder::plain(dense::rms_norm(m)?, experts::layers(m, &plain, &mixture)?))
}
