//! OLMo 2 and 3: norms on each half's output only, and on q and k whole; OLMo 3 has a window on three layers of four.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
};
use crate::spec::{Activation, NormPlacement, QkNorm, RopePairing, RopeScaling};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::Post);
    dense::attentions(&mut layers).for_each(|attention| attention.qk_norm = QkNorm::AllHeads);
    if m.count_or("attention.sliding_window", 0, 0..=usize::MAX)? > 0 {
        let windowed = dense::windows(m, &mut layers, None, 4)?;
        for (attention, _) in dense::attentions(&mut layers).zip(windowed).filter(|(_, windowed)| *windowed) {
            if let Some(rope) = &mut attention.rope {
                (rope.scaling, rope.magnitude) = (RopeScaling::None, 1.0);
            }
        }
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
