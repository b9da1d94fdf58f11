//! Ling 2.0: norms on each head of q and k, experts in groups, a shared one, a dense beginning.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut mixture = experts::as_said(m, plain.activation, Scoring::Sigmoid)?;
    let shared_width = experts::shared_by_width(m, mixture.activation)?.map_or(mixture.inner, |shared| shared.inner);
    mixture.shared = experts::shared_by_count(m, shared_width, mixture.activation)?;
    let mut layers = experts::layers(m, &plain, &mixture)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
