//! The parts of layers with a state.

use std::sync::Arc;

use qmesh_models::spec::{DeltaGates, GatedDeltaSpec, LayerSpec, LayerTensor, StateSpaceSpec, TensorRole};

use super::layer::{LayerWeights, present};
use crate::{error::EngineError, gated_delta::GatedDelta, linear::Norm, state_space::StateSpace};

impl LayerWeights<'_, '_> {
    pub(super) fn gated_delta(
        &mut self,
        layer: &LayerSpec,
        spec: &GatedDeltaSpec,
        place: usize,
    ) -> Result<GatedDelta, EngineError> {
        use LayerTensor::{
            Alpha, AttnNorm, AttnNormBias, Beta, BetaAlpha, Decay, DeltaQkv, PostAttnNorm, StateGate, StateNorm,
            StateOutput, TimeStepBias,
        };
        let (hidden, eps) = (self.hidden, layer.norm.eps);
        let GatedDeltaSpec { value_heads, head_dim, .. } = *spec;
        let gates = match spec.gates {
            DeltaGates::Apart => {
                vec![self.linear(Alpha, None, value_heads, hidden)?, self.linear(Beta, None, value_heads, hidden)?]
            }
            DeltaGates::Together => vec![self.linear(BetaAlpha, None, 2 * value_heads, hidden)?],
        };
        // x / √(Σx² + ε) is the RMS norm with a part of ε and a gain that is the same for all elements.
        let elements = head_dim as f32;
        let to_length = |length: f32| Norm {
            gain: vec![length / elements.sqrt(); head_dim].into(),
            bias: None,
            eps: eps / elements,
        };
        Ok(GatedDelta {
            layer: place,
            norm: self.norm_before(layer, [AttnNorm, AttnNormBias])?,
            qkv: self.linear(DeltaQkv, None, spec.channels(), hidden)?,
            gates,
            output_gate: self.linear(StateGate, None, spec.values(), hidden)?,
            taps: self.taps(spec.channels(), spec.taps)?,
            step_bias: self.vector(TimeStepBias, value_heads)?,
            decay: self.vector(Decay, value_heads)?,
            query_norm: to_length(1.0 / elements.sqrt()),
            key_norm: to_length(1.0),
            head_norm: Norm { gain: self.vector(StateNorm, head_dim)?, bias: None, eps },
            output: self.linear(StateOutput, None, hidden, spec.values())?,
            residual: self.residual(layer, PostAttnNorm)?,
            spec: spec.clone(),
        })
    }

    pub(super) fn state_space(
        &mut self,
        layer: &LayerSpec,
        spec: &StateSpaceSpec,
        place: usize,
    ) -> Result<StateSpace, EngineError> {
        use LayerTensor::{
            AttnNorm, AttnNormBias, ConvolutionBias, GroupNorm, HeadDecay, HeadSkip, PostAttnNorm, StateGate,
            StateInput, StateOutput, TimeStep, TimeStepBias,
        };
        let hidden = self.hidden;
        let StateSpaceSpec { heads, groups, .. } = *spec;
        let bias = present(spec.bias, ConvolutionBias);
        Ok(StateSpace {
            layer: place,
            norm: self.norm_before(layer, [AttnNorm, AttnNormBias])?,
            input: self.linear(StateInput, None, spec.channels(), hidden)?,
            time_step: self.linear(TimeStep, None, heads, hidden)?,
            output_gate: self.linear(StateGate, None, spec.values(), hidden)?,
            taps: self.taps(spec.channels(), spec.taps)?,
            bias: bias.map(|bias| self.vector(bias, spec.channels())).transpose()?,
            step_bias: self.vector(TimeStepBias, heads)?,
            decay: self.elements(HeadDecay, heads, 1)?,
            skip: self.elements(HeadSkip, heads, 1)?,
            group_gains: self.elements(GroupNorm, groups, spec.values() / groups)?,
            eps: layer.norm.eps,
            output: self.linear(StateOutput, None, hidden, spec.values())?,
            residual: self.residual(layer, PostAttnNorm)?,
            spec: spec.clone(),
        })
    }

    /// All elements of a small matrix.
    fn elements(&mut self, tensor: LayerTensor, rows: usize, cols: usize) -> Result<Arc<[f32]>, EngineError> {
        Ok(self.weights.rows(TensorRole::Layer(self.layer, tensor), rows, cols)?.into())
    }

    /// The factors of a convolution, which a file has channel by channel: (taps, channels).
    fn taps(&mut self, channels: usize, taps: usize) -> Result<Arc<[f32]>, EngineError> {
        let role = TensorRole::Layer(self.layer, LayerTensor::ConvolutionTaps);
        let by_channel = self.weights.rows(role, channels, taps)?;
        Ok((0..taps * channels).map(|at| by_channel[at % channels * taps + at / channels]).collect())
    }
}
