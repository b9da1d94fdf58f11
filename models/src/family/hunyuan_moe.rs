//! Hunyuan with experts: norms on each head of q and k after their rotation, and a shared expert.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing, Routing, Scoring, SharedExpert, SharedGate, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let inner = dense::inner(m)?[0];
    let routing = Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
    let mut mixture = experts::spec(m, inner, plain.activation, routing)?;
    let as_wide = SharedExpert { inner, activation: mixture.activation, gate: SharedGate::None };
    mixture.shared = Some(experts::shared_by_width(m, mixture.activation)?.unwrap_or(as_wide));
    let mut layers = experts::layers(m, &plain, &mixture)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHeadRotated);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
