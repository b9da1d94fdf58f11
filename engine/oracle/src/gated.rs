//! A gated feed-forward network: down(act(gate(x)) · up(x)).

use candle_core::{Result, Tensor};
use qmesh_models::spec::Activation;

use crate::{activation::activate, linear::Linear};

/// Its three products.
#[derive(Clone, Debug)]
pub(crate) struct Gated {
    pub(crate) activation: Activation,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

impl Gated {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x)?, self.up.forward(x)?);
        self.down.forward(&activate(self.activation, &gate, Some(&up))?)
    }
}
