//! dots.llm1: a Qwen 3 with a router of sigmoids, a shared expert and a dense beginning.

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
    mixture.shared = experts::shared_by_count(m, mixture.inner, mixture.activation)?;
    let mut layers = experts::layers(m, &plain, &mixture)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
