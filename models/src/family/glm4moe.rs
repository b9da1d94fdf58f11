//! GLM-4.5 to 4.7: norms on q and k in the large ones, a router of sigmoids, a shared expert, a dense beginning.

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
    for (layer, attention) in dense::attentions(&mut layers).enumerate() {
        if m.has_tensor(&format!("blk.{layer}.attn_q_norm.weight")) {
            attention.qk_norm = QkNorm::PerHead;
        }
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
