//! What layers take in of a token beside the hidden state.

use candle_core::{Result, Tensor};
use candle_nn::{Embedding, Module};
use qmesh_models::spec::{Activation, LayerIndex, LayerInputs, LayerTensor, TensorRole};

use crate::{
    activation::activate,
    error::OracleError,
    linear::Linear,
    norm::Norm,
    weights::{Weights, of_layer},
};

/// What makes the rows of all layers.
#[derive(Clone, Debug)]
pub(crate) struct LayerInputMaker {
    table: Embedding,
    projection: Linear,
    norm: Norm,
    layers: usize,
    width: usize,
}

/// Where one layer takes its rows in.
#[derive(Clone, Debug)]
pub(crate) struct LayerInput {
    activation: Activation,
    gate: Linear,
    projection: Linear,
    norm: Norm,
}

impl LayerInputMaker {
    pub(crate) fn open(weights: &Weights<'_>, inputs: LayerInputs) -> std::result::Result<Self, OracleError> {
        let (layers, width) = (weights.spec.layers.len(), inputs.width);
        let table = weights.matrix(TensorRole::LayerEmbeddings, weights.spec.vocab, layers * width)?;
        Ok(Self {
            table: Embedding::new(table, layers * width),
            projection: Linear::open(
                weights,
                TensorRole::LayerProjection,
                None,
                [layers * width, weights.spec.hidden],
            )?,
            norm: Norm::rms(weights, TensorRole::LayerProjectionNorm, width, inputs.eps)?,
            layers,
            width,
        })
    }

    /// The rows of tokens with these ids, which are embedded to x (rows, hidden): (rows, layers, width).
    pub(crate) fn make(&self, ids: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let each = |all: Tensor| all.reshape((rows, self.layers, self.width));
        let looked_up = (each(self.table.forward(ids)?)? * (self.width as f64).sqrt())?;
        let projected = each((self.projection.forward(x)? / (hidden as f64).sqrt())?)?;
        (looked_up + self.norm.forward(&projected)?)? / 2_f64.sqrt()
    }
}

impl LayerInput {
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        LayerInputs { width, activation, eps }: LayerInputs,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{InputGate, InputNorm, InputProjection};
        let hidden = weights.spec.hidden;
        let linear = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        Ok(Self {
            activation,
            gate: linear(InputGate, [width, hidden])?,
            projection: linear(InputProjection, [hidden, width])?,
            norm: Norm::rms(weights, of_layer(layer, InputNorm), hidden, eps)?,
        })
    }

    /// x (rows, hidden) with what is made of it and of the layer's rows (rows, width).
    pub(crate) fn take_in(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let gated = activate(self.activation, &self.gate.forward(x)?, Some(rows))?;
        x + self.norm.forward(&self.projection.forward(&gated)?)?
    }
}
