//! The feed-forward half of a layer, between its norms.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{Activation, Ffn, LayerIndex, LayerTensor};

use crate::{
    activation::activate,
    error::OracleError,
    experts::Experts,
    gated::Gated,
    linear::Linear,
    weights::{Weights, bias_of, of_layer},
};

/// What a feed-forward half computes.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    /// down(act(gate(x)) · up(x)).
    Gated(Gated),
    /// down(act(up(x))).
    Plain { activation: Activation, up: Linear, down: Linear },
    /// Σ weight · expert(x).
    Experts(Experts),
}

impl FeedForward {
    /// The half of `layer` that `spec` describes.
    pub(crate) fn open(weights: &Weights<'_>, layer: LayerIndex, spec: &Ffn) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{Down, DownBias, Gate, GateBias, Up, UpBias};
        let hidden = weights.spec.hidden;
        let linear = |tensor, bias, bias_tensor, shape| {
            Linear::open(weights, of_layer(layer, tensor), bias_of(layer, bias, bias_tensor), shape)
        };
        Ok(match *spec {
            Ffn::Gated { inner, activation, bias } => Self::Gated(Gated {
                activation,
                gate: linear(Gate, bias, GateBias, [inner, hidden])?,
                up: linear(Up, bias, UpBias, [inner, hidden])?,
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            }),
            Ffn::Plain { inner, activation, bias } => Self::Plain {
                activation,
                up: linear(Up, bias, UpBias, [inner, hidden])?,
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            },
            Ffn::Experts(ref experts) => Self::Experts(Experts::open(weights, layer, experts)?),
        })
    }

    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated(gated) => gated.forward(x),
            Self::Plain { activation, up, down } => down.forward(&activate(*activation, &up.forward(x)?, None)?),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}
