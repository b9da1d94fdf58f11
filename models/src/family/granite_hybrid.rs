//! Granite 4 H: a Granite, dense or with experts, most of whose layers have a state space in place of attention: those without
//! key/value heads.

use super::{Decoder, ModelError, dense, granite, metadata::Metadata, state_space};
use crate::spec::Mixer;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let mut layers = granite::layers(m)?;
    let (space, with_state) = (state_space::spec(m)?, dense::without_kv_heads(m, layers.len())?);
    for (index, layer) in layers.iter_mut().enumerate().filter(|(index, _)| with_state[*index]) {
        layer.mixer = Mixer::StateSpace(state_space::of_layer(m, &space, index));
    }
    granite::scaled(m, layers)
}
