//! Hunyuan: norms on each head of q and k after their rotation.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHeadRotated);
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
