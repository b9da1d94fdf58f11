//! EXAONE 4: norms on each half's output and on each head of q and k; the 32B has windows on three layers of four, and knows
//! positions in these alone.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, NormPlacement, QkNorm, RopePairing};

/// It is told by its depth.
const LAYERS_32B: usize = 64;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::Post);
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::PerHead);
    if layers.len() == LAYERS_32B {
        dense::positions_in_windows(m, &mut layers, Some(4096), 4)?;
    }
    // The others' files may have a window as well, which nobody applies.
    m.pass_over("attention.sliding_window");
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
