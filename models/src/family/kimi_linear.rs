//! Kimi Linear: the delta rule with a decay of each element of a key, and latent attention without positions in the layers that have
//! key/value heads; the first layers dense, the others with experts and one that every token goes through.

use super::{Decoder, ModelError, deepseek2, dense, gated_delta, latent, metadata::Metadata};
use crate::spec::{Ffn, Mixer, Scoring, Weighting};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let mut attention = latent::spec(m)?;
    attention.rope = None;
    let (attention, delta) = (Mixer::Latent(attention), Mixer::GatedDelta(gated_delta::each_element(m)?));
    let with_state = dense::without_kv_heads(m, m.layer_count()?)?;
    let mixers = with_state.into_iter().map(|state| if state { delta.clone() } else { attention.clone() }).collect();
    let mut ffns = deepseek2::ffns(m, Scoring::Sigmoid)?;
    for ffn in &mut ffns {
        match ffn {
            // Whatever the file says.
            Ffn::Experts(experts) => experts.routing.weighting = Weighting::Normalised,
            Ffn::Gated { .. } | Ffn::Plain { .. } | Ffn::Both { .. } | Ffn::None => {}
        }
    }
    deepseek2::layers(m, mixers, ffns)
}
