//! K-EXAONE: norms on each head of q and k, windows on three layers of four, positions in these alone, a router of sigmoids.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, QkNorm, RopePairing, Scoring, SharedExpert, SharedGate};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut mixture = experts::as_said(m, plain.activation, Scoring::Sigmoid)?;
    let as_wide = SharedExpert { inner: mixture.inner, activation: mixture.activation, gate: SharedGate::None };
    mixture.shared = Some(experts::shared_by_width(m, mixture.activation)?.unwrap_or(as_wide));
    let mut layers = experts::layers(m, &plain, &mixture)?;
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    dense::positions_in_windows(m, &mut layers, None, 4)?;
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
