//! DeepSeek V3.2: a DeepSeek V3 whose rows attend to the positions that an indexer chooses.

use super::{Decoder, ModelError, deepseek2, latent, metadata::Metadata};
use crate::spec::{LatentSpec, Mixer, Positions, RopePairing, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    // The indexer's heads are rotated in halves, those of the attention are not.
    let attention = indexed(m, RopePairing::Halves)?;
    let mixers = vec![Mixer::Latent(attention); m.layer_count()?];
    deepseek2::layers(m, mixers, deepseek2::ffns(m, Scoring::Sigmoid)?)
}

/// Latent attention to what an indexer chooses, whose heads are rotated in such pairs.
pub(super) fn indexed(m: &Metadata<'_>, pairing: RopePairing) -> Result<LatentSpec, ModelError> {
    // Positions of a text are the same in all sections.
    m.pass_over("rope.dimension_sections");
    let mut attention = latent::spec(m)?;
    attention.positions = Positions::Chosen(latent::indexer(m, &attention, pairing)?);
    Ok(attention)
}
