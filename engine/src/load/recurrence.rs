//! The parts of layers with a state.

use std::sync::Arc;

use qmesh_models::spec::{
    DeltaGates, DeltaInputs, DeltaOutputGate, GatedDeltaSpec, LayerSpec, LayerTensor, StateSpaceSpec, TensorRole,
};

use super::layer::{LayerWeights, present};
use crate::{
    error::EngineError,
    gated_delta::{GatedDelta, Input},
    linear::Norm,
    state_space::StateSpace,
};

impl LayerWeights<'_, '_> {
    pub(super) fn gated_delta(
        &mut self,
        layer: &LayerSpec,
        spec: &GatedDeltaSpec,
        place: usize,
    ) -> Result<GatedDelta, EngineError> {
        use LayerTensor::{
            AttnNorm, AttnNormBias, Decay, HeadDecay, PostAttnNorm, StateNorm, StateOutput, TimeStepBias,
        };
        let (hidden, eps) = (self.hidden, layer.norm.eps);
        let GatedDeltaSpec { value_heads, head_dim, .. } = *spec;
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
            inputs: self.delta_inputs(spec)?,
            taps: match spec.inputs {
                DeltaInputs::Apart => {
                    use LayerTensor::{KeyTaps, QueryTaps, ValueTaps};
                    let keys = spec.key_heads * head_dim;
                    self.taps(&[(QueryTaps, keys), (KeyTaps, keys), (ValueTaps, spec.values())], spec.taps)?
                }
                DeltaInputs::Together => self.taps(&[(LayerTensor::ConvolutionTaps, spec.channels())], spec.taps)?,
            },
            step_bias: self.vector(TimeStepBias, spec.alphas())?,
            decay: match spec.gates {
                DeltaGates::Apart | DeltaGates::Together => self.vector(Decay, value_heads)?,
                DeltaGates::EachElement(_) => self.elements(HeadDecay, value_heads, 1)?,
            },
            query_norm: to_length(1.0 / elements.sqrt()),
            key_norm: to_length(1.0),
            head_norm: Norm { gain: self.vector(StateNorm, head_dim)?, bias: None, eps },
            output: self.linear(StateOutput, None, hidden, spec.values())?,
            residual: self.residual(layer, PostAttnNorm)?,
            spec: spec.clone(),
        })
    }

    /// What makes q, k and v, then α and β, then the output's gate.
    fn delta_inputs(&mut self, spec: &GatedDeltaSpec) -> Result<Vec<Input>, EngineError> {
        use LayerTensor::{
            Alpha, AlphaDown, AlphaUp, Beta, BetaAlpha, DeltaQkv, K, Q, StateGate, StateGateDown, StateGateUp, V,
        };
        let (heads, keys, values) = (spec.value_heads, spec.key_heads * spec.head_dim, spec.values());
        let mut inputs = match spec.inputs {
            DeltaInputs::Apart => vec![self.straight(Q, keys)?, self.straight(K, keys)?, self.straight(V, values)?],
            DeltaInputs::Together => vec![self.straight(DeltaQkv, spec.channels())?],
        };
        match spec.gates {
            DeltaGates::Apart => inputs.extend([self.straight(Alpha, heads)?, self.straight(Beta, heads)?]),
            DeltaGates::EachElement(rank) => {
                inputs.extend([self.narrow([AlphaDown, AlphaUp], rank, values)?, self.straight(Beta, heads)?]);
            }
            DeltaGates::Together => inputs.push(self.straight(BetaAlpha, 2 * heads)?),
        }
        inputs.push(match spec.output_gate {
            DeltaOutputGate::SigmoidNarrow(rank) => self.narrow([StateGateDown, StateGateUp], rank, values)?,
            DeltaOutputGate::Silu => self.straight(StateGate, values)?,
        });
        Ok(inputs)
    }

    fn straight(&mut self, tensor: LayerTensor, outputs: usize) -> Result<Input, EngineError> {
        Ok(Input::Straight(self.linear(tensor, None, outputs, self.hidden)?))
    }

    fn narrow(&mut self, [down, up]: [LayerTensor; 2], rank: usize, outputs: usize) -> Result<Input, EngineError> {
        let down = self.linear(down, None, rank, self.hidden)?;
        Ok(Input::Narrow { down, up: self.linear(up, None, outputs, rank)? })
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
            taps: self.taps(&[(LayerTensor::ConvolutionTaps, spec.channels())], spec.taps)?,
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

    /// The factors of a convolution, which a file has channel by channel, so many in each tensor: (taps, channels).
    fn taps(&mut self, tensors: &[(LayerTensor, usize)], taps: usize) -> Result<Arc<[f32]>, EngineError> {
        let mut by_channel = Vec::new();
        for (tensor, channels) in tensors {
            by_channel.extend(self.weights.rows(TensorRole::Layer(self.layer, *tensor), *channels, taps)?);
        }
        let channels = by_channel.len() / taps;
        Ok((0..taps * channels).map(|at| by_channel[at % channels * taps + at / channels]).collect())
    }
}
