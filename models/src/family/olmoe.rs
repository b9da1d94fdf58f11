//! OLMoE: norms on q and k whole, weights of experts that are not normalised.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing, Routing, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let routing = Routing::plain(Scoring::Softmax, Weighting::AsScored);
    let mixture = experts::spec(m, dense::inner(m)?[0], plain.activation, routing)?;
    let mut layers = experts::layers(m, &plain, &mixture)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::AllHeads);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
