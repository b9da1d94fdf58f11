//! Granite 4 H: a Granite most of whose layers have a state space in place of attention: those without key/value heads.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    granite,
    metadata::Metadata,
    state_space,
};
use crate::spec::{Activation, Mixer, RopePairing};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    let (space, with_state) = (state_space::spec(m)?, dense::without_kv_heads(m, layers.len())?);
    for (index, layer) in layers.iter_mut().enumerate().filter(|(index, _)| with_state[*index]) {
        layer.mixer = Mixer::StateSpace(state_space::of_layer(m, &space, index));
    }
    granite::scaled(m, layers)
}
