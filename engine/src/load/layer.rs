//! The parts of one layer.

use std::sync::Arc;

use qmesh_models::spec::{
    Activation, AttentionSpec, Bias, ExpertsSpec, Ffn, LayerIndex, LayerSpec, LayerTensor, Mixer, NormPlacement,
    QkNorm, Sinks, TensorRole,
};

use super::{Weights, shape};
use crate::{
    attention::Attention,
    block::{Block, BlockMixer},
    error::EngineError,
    ffn::{FeedForward, FfnWeights},
    linear::{
        Gated, Linear, Norm, Residual,
        experts::{Experts, Shared},
    },
};

/// One layer's tensors.
pub(super) struct LayerWeights<'a, 'b> {
    pub(super) weights: &'a mut Weights<'b>,
    pub(super) layer: LayerIndex,
    pub(super) hidden: usize,
}

impl LayerWeights<'_, '_> {
    /// The block that is the shard's `place`-th, and uses its `rope`-th table.
    pub(super) fn block(&mut self, spec: &LayerSpec, place: usize, rope: Option<usize>) -> Result<Block, EngineError> {
        let mixer = match &spec.mixer {
            Mixer::Attention(attention) => BlockMixer::Attention(self.attention(spec, attention, place, rope)?),
            Mixer::GatedDelta(delta) => BlockMixer::GatedDelta(self.gated_delta(spec, delta, place)?),
            Mixer::StateSpace(space) => BlockMixer::StateSpace(self.state_space(spec, space, place)?),
        };
        Ok(Block { mixer, ffn: self.ffn(spec)? })
    }

    fn attention(
        &mut self,
        layer: &LayerSpec,
        spec: &AttentionSpec,
        place: usize,
        rope: Option<usize>,
    ) -> Result<Attention, EngineError> {
        use LayerTensor::{
            AttnNorm, AttnNormBias, AttnOutput, AttnOutputBias, K, KBias, KNorm, PostAttnNorm, Q, QBias, QNorm,
            Sinks as SinkScores, V, VBias,
        };
        let hidden = self.hidden;
        let (q_width, k_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let normed = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([spec.head_dim; 2]),
            QkNorm::AllHeads => Some([q_width, k_width]),
        };
        let mut rms = |tensor, len| {
            let gain = self.vector(tensor, len)?;
            Ok::<_, EngineError>(Norm { gain, bias: None, eps: layer.norm.eps })
        };
        let qk_norms = normed.map(|[q, k]| Ok::<_, EngineError>([rms(QNorm, q)?, rms(KNorm, k)?])).transpose()?;
        let sinks = match spec.sinks {
            Sinks::None => Arc::default(),
            Sinks::PerHead => self.vector(SinkScores, spec.heads)?,
        };
        Ok(Attention {
            layer: place,
            rope,
            norm: self.norm_before(layer, [AttnNorm, AttnNormBias])?,
            q: self.linear(Q, present(spec.qkv_bias, QBias), spec.query_outputs(), hidden)?,
            k: self.linear(K, present(spec.qkv_bias, KBias), k_width, hidden)?,
            v: self.linear(V, present(spec.qkv_bias, VBias), k_width, hidden)?,
            qk_norms,
            sinks,
            output: self.linear(AttnOutput, present(spec.output_bias, AttnOutputBias), hidden, q_width)?,
            residual: self.residual(layer, PostAttnNorm)?,
            spec: spec.clone(),
        })
    }

    fn ffn(&mut self, layer: &LayerSpec) -> Result<FeedForward, EngineError> {
        use LayerTensor::{Down, DownBias, FfnNorm, FfnNormBias, Gate, GateBias, PostFfnNorm, Up, UpBias};
        let hidden = self.hidden;
        let weights = match layer.ffn {
            Ffn::Gated { inner, activation, bias } => FfnWeights::Gated(Gated {
                activation,
                gate: self.linear(Gate, present(bias, GateBias), inner, hidden)?,
                up: Some(self.linear(Up, present(bias, UpBias), inner, hidden)?),
                down: self.linear(Down, present(bias, DownBias), hidden, inner)?,
            }),
            Ffn::Plain { inner, activation, bias } => FfnWeights::Gated(Gated {
                activation,
                gate: self.linear(Up, present(bias, UpBias), inner, hidden)?,
                up: None,
                down: self.linear(Down, present(bias, DownBias), hidden, inner)?,
            }),
            Ffn::Experts(ref spec) => FfnWeights::Experts(self.experts(spec)?),
        };
        let norm = self.norm_before(layer, [FfnNorm, FfnNormBias])?;
        Ok(FeedForward { norm, weights, residual: self.residual(layer, PostFfnNorm)? })
    }

    fn experts(&mut self, spec: &ExpertsSpec) -> Result<Experts, EngineError> {
        use LayerTensor::{
            ExpertDownBiases, ExpertDowns, ExpertGateBiases, ExpertGates, ExpertUpBiases, ExpertUps, Router, RouterBias,
        };
        let ExpertsSpec { count, used, inner, activation, bias, weighting, weight_scale, shared } = *spec;
        let hidden = self.hidden;
        let gates = self.stacked(ExpertGates, present(bias, ExpertGateBiases), [count, inner, hidden])?;
        let ups = self.stacked(ExpertUps, present(bias, ExpertUpBiases), [count, inner, hidden])?;
        let downs = self.stacked(ExpertDowns, present(bias, ExpertDownBiases), [count, hidden, inner])?;
        let experts = gates.into_iter().zip(ups).zip(downs);
        let experts = experts.map(|((gate, up), down)| Gated { activation, gate, up: Some(up), down }).collect();
        let router = self.linear(Router, present(bias, RouterBias), count, hidden)?;
        let shared = shared.map(|inner| self.shared(inner, activation)).transpose()?;
        Ok(Experts { router, experts, used, weighting, weight_scale, shared })
    }

    fn shared(&mut self, inner: usize, activation: Activation) -> Result<Shared, EngineError> {
        use LayerTensor::{SharedDown, SharedGate, SharedRouter, SharedUp};
        let hidden = self.hidden;
        let expert = Gated {
            activation,
            gate: self.linear(SharedGate, None, inner, hidden)?,
            up: Some(self.linear(SharedUp, None, inner, hidden)?),
            down: self.linear(SharedDown, None, hidden, inner)?,
        };
        Ok(Shared { router: self.linear(SharedRouter, None, 1, hidden)?, expert })
    }

    /// The norm before a half, where there is one.
    pub(super) fn norm_before(
        &mut self,
        layer: &LayerSpec,
        tensors: [LayerTensor; 2],
    ) -> Result<Option<Norm>, EngineError> {
        let roles = tensors.map(|tensor| TensorRole::Layer(self.layer, tensor));
        match layer.norms {
            NormPlacement::Pre | NormPlacement::PreAndPost => {
                self.weights.norm(roles, self.hidden, layer.norm).map(Some)
            }
            NormPlacement::Post => Ok(None),
        }
    }

    pub(super) fn residual(&mut self, layer: &LayerSpec, tensor: LayerTensor) -> Result<Residual, EngineError> {
        let norm = match layer.norms {
            NormPlacement::Pre => None,
            NormPlacement::PreAndPost | NormPlacement::Post => {
                Some(Norm { gain: self.vector(tensor, self.hidden)?, bias: None, eps: layer.norm.eps })
            }
        };
        Ok(Residual { norm, scale: layer.residual_scale })
    }

    pub(super) fn vector(&mut self, tensor: LayerTensor, len: usize) -> Result<Arc<[f32]>, EngineError> {
        self.weights.vector(TensorRole::Layer(self.layer, tensor), len)
    }

    pub(super) fn linear(
        &mut self,
        tensor: LayerTensor,
        bias: Option<LayerTensor>,
        rows: usize,
        cols: usize,
    ) -> Result<Linear, EngineError> {
        let bias = bias.map(|bias| TensorRole::Layer(self.layer, bias));
        self.weights.linear(TensorRole::Layer(self.layer, tensor), bias, rows, cols)
    }

    /// The experts' products, whose matrices lie one below the other.
    fn stacked(
        &mut self,
        tensor: LayerTensor,
        biases: Option<LayerTensor>,
        [count, rows, cols]: [usize; 3],
    ) -> Result<Vec<Linear>, EngineError> {
        let role = |tensor| TensorRole::Layer(self.layer, tensor);
        let all = self.weights.matrix(role(tensor), count * rows, cols)?;
        let biases = biases.map(|biases| self.weights.rows(role(biases), count, rows)).transpose()?;
        let what = || {
            shape(
                &format!("{tensor:?} of layer {}", self.layer),
                format!("{rows} rows an expert: not whole groups of 16"),
            )
        };
        let matrices = all.stacked(count).ok_or_else(what)?;
        let bias = |expert: usize| biases.as_ref().map(|biases| Arc::from(&biases[expert * rows..][..rows]));
        Ok(matrices.into_iter().enumerate().map(|(expert, matrix)| Linear { matrix, bias: bias(expert) }).collect())
    }
}

pub(super) fn present(bias: Bias, tensor: LayerTensor) -> Option<LayerTensor> {
    match bias {
        Bias::None => None,
        Bias::Present => Some(tensor),
    }
}
