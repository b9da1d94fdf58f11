//! A state space over all rows of one session, one after another: S ← e^(A·d)·S + B·(d·x)ᵀ and SᵀC + D·x.

use candle_core::{Result, Tensor};
use candle_nn::ops::{rms_norm, silu};
use qmesh_models::spec::{LayerIndex, LayerTensor, StateSpaceSpec};

use crate::{
    cache::PastRows,
    convolution::convolved,
    error::OracleError,
    linear::Linear,
    weights::{Weights, bias_of, of_layer},
};

/// The state space of one layer.
#[derive(Clone, Debug)]
pub(crate) struct StateSpace {
    spec: StateSpaceSpec,
    input: Linear,
    time_step: Linear,
    output_gate: Linear,
    /// (channels, taps)
    taps: Tensor,
    /// (channels)
    bias: Option<Tensor>,
    /// (heads), as the next.
    step_bias: Tensor,
    decay: Tensor,
    skip: Tensor,
    /// (groups, elements of a group's heads)
    gains: Tensor,
    output: Linear,
    eps: f32,
}

impl StateSpace {
    /// That of `layer`, whose norms have `eps`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &StateSpaceSpec,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{
            ConvolutionBias, ConvolutionTaps, GroupNorm, HeadDecay, HeadSkip, StateGate, StateInput, StateOutput,
            TimeStep, TimeStepBias,
        };
        let StateSpaceSpec { heads, groups, taps, .. } = *spec;
        if groups == 0 || !heads.is_multiple_of(groups) {
            return Err(OracleError::Heads { heads, kv_heads: groups });
        }
        let hidden = weights.spec.hidden;
        let linear = |tensor, outputs| Linear::open(weights, of_layer(layer, tensor), None, [outputs, hidden]);
        let of_head = |tensor| Ok::<_, OracleError>(weights.matrix(of_layer(layer, tensor), heads, 1)?.flatten_all()?);
        let bias = bias_of(layer, spec.bias, ConvolutionBias);
        Ok(Self {
            input: linear(StateInput, spec.channels())?,
            time_step: linear(TimeStep, heads)?,
            output_gate: linear(StateGate, spec.values())?,
            taps: weights.matrix(of_layer(layer, ConvolutionTaps), spec.channels(), taps)?,
            bias: bias.map(|role| weights.vector(role, spec.channels())).transpose()?,
            step_bias: weights.vector(of_layer(layer, TimeStepBias), heads)?,
            decay: of_head(HeadDecay)?,
            skip: of_head(HeadSkip)?,
            gains: weights.matrix(of_layer(layer, GroupNorm), groups, spec.values() / groups)?,
            output: Linear::open(weights, of_layer(layer, StateOutput), None, [hidden, spec.values()])?,
            eps,
            spec: spec.clone(),
        })
    }

    /// x (rows, hidden) → (rows, hidden). The state is made anew of all rows that the session has.
    pub(crate) fn forward(&self, x: &Tensor, past: &mut PastRows) -> Result<Tensor> {
        let all = past.append(x)?;
        let StateSpaceSpec { heads, head_dim, groups, state_size, .. } = self.spec;
        let (rows, inner, shared) = (all.dim(0)?, self.spec.values(), groups * state_size);
        // x, B and C: (rows, channels).
        let convolved = convolved(&self.input.forward(&all)?, &self.taps, self.bias.as_ref())?;
        let x_of = convolved.narrow(1, 0, inner)?.reshape((rows, heads, head_dim))?;
        let each_head = |first| -> Result<Tensor> {
            let groups_of = convolved.narrow(1, first, shared)?.reshape((rows, groups, 1, state_size))?;
            let all = groups_of.broadcast_as((rows, groups, heads / groups, state_size))?;
            all.contiguous()?.reshape((rows, heads, state_size))
        };
        let (b, c) = (each_head(inner)?, each_head(inner + shared)?);
        let steps = (self.time_step.forward(&all)?.broadcast_add(&self.step_bias)?.exp()? + 1.0)?.log()?;
        let remains = steps.broadcast_mul(&self.decay)?.exp()?;
        let mut state = Tensor::zeros((heads, state_size, head_dim), x.dtype(), x.device())?;
        let mut answers = Vec::new();
        for row in 0..rows {
            let of_head = |x: &Tensor| x.get(row)?.reshape((heads, 1, 1));
            let given = x_of.get(row)?.unsqueeze(1)?.broadcast_mul(&of_head(&steps)?)?; // (heads, 1, head_dim)
            let put = b.get(row)?.unsqueeze(2)?.contiguous()?.matmul(&given)?;
            state = (state.broadcast_mul(&of_head(&remains)?)? + put)?;
            answers.push(c.get(row)?.unsqueeze(1)?.contiguous()?.matmul(&state)?.squeeze(1)?);
        }
        let past_state = x_of.broadcast_mul(&self.skip.reshape((1, heads, 1))?)?;
        let answers = (Tensor::stack(&answers, 0)? + past_state)?.flatten_from(1)?;
        let gated = (answers * silu(&self.output_gate.forward(&all)?)?)?;
        let new = x.dim(0)?;
        self.output.forward(&self.normalised(&gated)?.narrow(0, rows - new, new)?.contiguous()?)
    }

    /// x (rows, heads · head_dim), each group's part normalised alone.
    fn normalised(&self, x: &Tensor) -> Result<Tensor> {
        let width = self.spec.values() / self.spec.groups;
        let group = |group: usize| -> Result<Tensor> {
            rms_norm(&x.narrow(1, group * width, width)?.contiguous()?, &self.gains.get(group)?, self.eps)
        };
        Tensor::cat(&(0..self.spec.groups).map(group).collect::<Result<Vec<_>>>()?, 1)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::spec::Bias;

    use super::*;

    fn linear(weight: &[f32], outputs: usize) -> Linear {
        let weight = Tensor::new(weight, &Device::Cpu).unwrap().reshape((outputs, weight.len() / outputs)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    #[test]
    fn a_state_decays_and_takes_in_what_comes() {
        // One head of one element: x = B = C = silu(2 · row + 1). The step is ln 2, and a half remains.
        let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
        let space = StateSpace {
            spec: StateSpaceSpec { heads: 1, head_dim: 1, groups: 1, state_size: 1, taps: 2, bias: Bias::Present },
            input: linear(&[1.0, 1.0, 1.0], 3),
            time_step: linear(&[0.0], 1),
            output_gate: linear(&[1.0], 1),
            taps: tensor(&[0.0, 2.0, 0.0, 2.0, 0.0, 2.0]).reshape((3, 2)).unwrap(),
            bias: Some(tensor(&[1.0, 1.0, 1.0])),
            step_bias: tensor(&[0.0]),
            decay: tensor(&[-1.0]),
            skip: tensor(&[3.0]),
            // x / √(x² + 1e12) · 1e6 is x.
            gains: tensor(&[1e6]).reshape((1, 1)).unwrap(),
            output: linear(&[1.0], 1),
            eps: 1e12,
        };
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let rows = [2.0_f32, -1.0, 0.5];
        let mut state = 0.0;
        let expected = rows.map(|row| {
            let x = silu(2.0 * row + 1.0);
            state = 0.5 * state + x * std::f32::consts::LN_2 * x;
            (state * x + 3.0 * x) * silu(row)
        });
        let x = Tensor::new(&rows, &Device::Cpu).unwrap().reshape((3, 1)).unwrap();
        let whole = space.forward(&x, &mut PastRows::default()).unwrap();
        let mut past = PastRows::default();
        let halves = [(0, 2), (2, 1)].map(|(first, rows)| space.forward(&x.narrow(0, first, rows).unwrap(), &mut past));
        let halves = Tensor::cat(&halves.map(Result::unwrap), 0).unwrap();
        for y in [whole, halves] {
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-3), "{y:?} for {expected:?}");
        }
    }
}
