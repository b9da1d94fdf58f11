//! The feed-forward half of a layer, between its norms.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{Bias, Ffn, LayerIndex, LayerTensor};

use crate::{
    error::OracleError,
    experts::Experts,
    gated::Gated,
    linear::Linear,
    norm::Norm,
    weights::{Weights, bias_of, of_layer},
};

/// What a feed-forward half computes.
#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    /// down(act(gate(x)) · up(x)), or without the second factor.
    Gated(Gated),
    /// Σ weight · expert(x).
    Experts(Box<Experts>),
    /// after(gated(before(x))) + after(Σ weight · expert(before(x))), each with norms of its own.
    Both(Box<Both>),
}

/// A gated FFN and a mixture of experts side by side, with all norms but the one behind their sum.
#[derive(Clone, Debug)]
pub(crate) struct Both {
    gated: Gated,
    experts: Experts,
    around_gated: [Norm; 2],
    around_experts: [Norm; 2],
    before_router: Norm,
}

impl FeedForward {
    /// The half of `layer` that `spec` describes, if there is one; `eps` is that of its own norms.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &Ffn,
        eps: f32,
    ) -> std::result::Result<Option<Self>, OracleError> {
        use LayerTensor::{
            Down, DownBias, ExpertsNorm, FfnNorm, Gate, GateBias, PostExpertsNorm, PostGatedNorm, RouterNorm, Up,
            UpBias,
        };
        let hidden = weights.spec.hidden;
        let linear = |tensor, bias, bias_tensor, shape| {
            Linear::open(weights, of_layer(layer, tensor), bias_of(layer, bias, bias_tensor), shape)
        };
        let gated = |inner, activation, bias| {
            Ok::<_, OracleError>(Gated {
                activation,
                gate: linear(Gate, bias, GateBias, [inner, hidden])?,
                up: Some(linear(Up, bias, UpBias, [inner, hidden])?),
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            })
        };
        let norm = |tensor| Norm::rms(weights, of_layer(layer, tensor), hidden, eps);
        Ok(match *spec {
            Ffn::Gated { inner, activation, bias } => Some(Self::Gated(gated(inner, activation, bias)?)),
            Ffn::Plain { inner, activation, bias } => Some(Self::Gated(Gated {
                activation,
                gate: linear(Up, bias, UpBias, [inner, hidden])?,
                up: None,
                down: linear(Down, bias, DownBias, [hidden, inner])?,
            })),
            Ffn::Experts(ref experts) => Some(Self::Experts(Box::new(Experts::open(weights, layer, experts)?))),
            Ffn::Both { inner, ref experts } => Some(Self::Both(Box::new(Both {
                gated: gated(inner, experts.activation, Bias::None)?,
                experts: Experts::open(weights, layer, experts)?,
                around_gated: [norm(FfnNorm)?, norm(PostGatedNorm)?],
                around_experts: [norm(ExpertsNorm)?, norm(PostExpertsNorm)?],
                before_router: norm(RouterNorm)?,
            }))),
            Ffn::None => None,
        })
    }

    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gated(gated) => gated.forward(x),
            Self::Experts(experts) => experts.forward(x),
            Self::Both(both) => {
                let Both { gated, experts, around_gated, around_experts, before_router } = &**both;
                let dense = around_gated[1].forward(&gated.forward(&around_gated[0].forward(x)?)?)?;
                let scored = (before_router.forward(x)? / (x.dim(1)? as f64).sqrt())?;
                let mixed = experts.forward_scored(&around_experts[0].forward(x)?, &scored)?;
                dense + around_experts[1].forward(&mixed)?
            }
        }
    }
}
