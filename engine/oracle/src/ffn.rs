//! The feed-forward half of a layer, between its norms.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{Ffn, LayerIndex, LayerTensor};

use crate::{
    error::OracleError,
    experts::Experts,
    gated::Gated,
    linear::Linear,
    weights::{Weights, bias_of, of_layer},
};

/// What a feed-forward half computes.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    /// down(act(gate(x)) · up(x)), or without the second factor.
    Gated(Gated),
    /// Σ weight · expert(x).
    Experts(Box<Experts>),
}

impl FeedForward {
    /// The half of `layer` that `spec` describes, if there is one.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &Ffn,
    ) -> std::result::Result<Option<Self>, OracleError> {
        use LayerTensor::{Down, DownBias, Gate, GateBias, Up, UpBias};
        let hidden = weights.spec.hidden;
        let linear = |tensor, bias, bias_tensor, shape| {
            Linear::open(weights, of_layer(layer, tensor), bias_of(layer, bias, bias_tensor), shape)
        };
        Ok(match *spec {
            Ffn::Gated { inner, activation, bias } => Some(Self::Gated(Gated {
                activation,
                gate: linear(Gate, bias, GateBias, [inner, hidden])?,
                up: Some(linear(Up, bias, UpBias, [inner, hidden])?),
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            })),
            Ffn::Plain { inner, activation, bias } => Some(Self::Gated(Gated {
                activation,
                gate: linear(Up, bias, UpBias, [inner, hidden])?,
                up: None,
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            })),
            Ffn::Experts(ref experts) => Some(Self::Experts(Box::new(Experts::open(weights, layer, experts)?))),
            Ffn::None => None,
        })
    }

    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated(gated) => gated.forward(x),
            Self::Experts(experts) => experts.forward(x),
        }
    }
}
