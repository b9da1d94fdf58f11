//! ERNIE 4.5 with experts: a softmax with a bias for the choice, a shared expert, a dense beginning.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    // Experts on every layer but the leading ones: no file has another step.
    m.count("interleave_moe_layer_step", 1..=1)?;
    let routing = Routing::plain(Scoring::Softmax, Weighting::Normalised);
    let mut mixture = experts::spec(m, experts::width(m)?, plain.activation, routing)?;
    mixture.shared = experts::shared_by_width(m, mixture.activation)?;
    Ok(Decoder::plain(dense::rms_norm(m)?, experts::layers(m, &plain, &mixture)?))
}
