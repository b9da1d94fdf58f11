//! GLM-5: a DeepSeek V3.2 with a router of sigmoids, whose indexer is rotated as its attention is. Since GLM-5.2, most layers go by
//! what an earlier one has chosen.

use super::{Decoder, ModelError, deepseek2, deepseek32, metadata::Metadata};
use crate::spec::{Mixer, Positions, RopePairing, Scoring};

/// From this context on, most layers have no indexer of their own where the file does not say (GLM-5.2).
const SHARING_CONTEXT: usize = 1 << 20;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    const OWN: &str = "attention.indexer.types";
    let layers = m.layer_count()?;
    let sharing = m.context()? >= SHARING_CONTEXT;
    let own = m.flags(OWN, layers)?;
    let own = own.unwrap_or_else(|| (0..layers).map(|layer| !sharing || layer < 2 || layer % 4 == 2).collect());
    if !own[0] {
        return Err(m.unsupported(OWN, "a first layer without one".to_owned(), "an indexer in the first layer"));
    }
    let chosen = deepseek32::indexed(m, RopePairing::Interleaved)?;
    let mut as_before = chosen.clone();
    as_before.positions = Positions::AsBefore;
    let mixers = own.into_iter().map(|own| Mixer::Latent(if own { chosen.clone() } else { as_before.clone() }));
    deepseek2::layers(m, mixers.collect(), deepseek2::ffns(m, Scoring::Sigmoid)?)
}
