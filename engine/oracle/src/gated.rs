//! A feed-forward network: down(act(gate(x)) · up(x)), or down(act(gate(x))) without `up`.

use candle_core::{Result, Tensor};
use qmesh_models::spec::Activation;

use crate::{activation::activate, linear::Linear};

/// Its products.
#[derive(Clone, Debug)]
pub(crate) struct Gated {
    pub(crate) activation: Activation,
    pub(crate) gate: Linear,
    pub(crate) up: Option<Linear>,
    pub(crate) down: Linear,
}

impl Gated {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let up = self.up.as_ref().map(|up| up.forward(x)).transpose()?;
        self.down.forward(&activate(self.activation, &self.gate.forward(x)?, up.as_ref())?)
    }
}
