//! The gated delta rule over all rows of one session, one after another: S ← g·S + k·β(v − g·Sᵀk)ᵀ and Sᵀq/√elements.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{sigmoid, silu};
use qmesh_models::spec::{
    DeltaGates, DeltaInputs, DeltaOutputGate, GatedDeltaSpec, KeySharing, LayerIndex, LayerTensor,
};

use crate::{
    cache::PastRows,
    convolution::convolved,
    error::OracleError,
    linear::Linear,
    norm::Norm,
    weights::{Weights, of_layer},
};

/// The gated delta rule of one layer.
#[derive(Clone, Debug)]
pub(crate) struct GatedDelta {
    spec: GatedDeltaSpec,
    /// Together or apart.
    qkv: Vec<Linear>,
    gates: Gates,
    /// One product, or two after each other.
    output_gate: Vec<Linear>,
    /// (channels, taps)
    taps: Tensor,
    /// One for each α.
    step_bias: Tensor,
    /// (value_heads)
    decay: Tensor,
    head_norm: Norm,
    output: Linear,
    eps: f64,
}

/// What makes α and β.
#[derive(Clone, Debug)]
enum Gates {
    /// α by one product, or by two after each other; β by one.
    Apart(Vec<Linear>, Linear),
    Together(Linear),
}

impl GatedDelta {
    /// That of `layer`, whose norms have `eps`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &GatedDeltaSpec,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{
            Alpha, AlphaDown, AlphaUp, Beta, BetaAlpha, ConvolutionTaps, Decay, DeltaQkv, HeadDecay, K, KeyTaps, Q,
            QueryTaps, StateGate, StateGateDown, StateGateUp, StateNorm, StateOutput, TimeStepBias, V, ValueTaps,
        };
        let GatedDeltaSpec { key_heads, value_heads, head_dim, taps, .. } = *spec;
        if key_heads == 0 || !value_heads.is_multiple_of(key_heads) {
            return Err(OracleError::Heads { heads: value_heads, kv_heads: key_heads });
        }
        let hidden = weights.spec.hidden;
        let product = |tensor, outputs, inputs| Linear::open(weights, of_layer(layer, tensor), None, [outputs, inputs]);
        let linear = |tensor, outputs| product(tensor, outputs, hidden);
        let (keys, values) = (key_heads * head_dim, spec.values());
        let (qkv, channels) = match spec.inputs {
            DeltaInputs::Apart => (
                vec![linear(Q, keys)?, linear(K, keys)?, linear(V, values)?],
                vec![(QueryTaps, keys), (KeyTaps, keys), (ValueTaps, values)],
            ),
            DeltaInputs::Together => {
                (vec![linear(DeltaQkv, spec.channels())?], vec![(ConvolutionTaps, spec.channels())])
            }
        };
        let of_channels = |(tensor, channels)| weights.matrix(of_layer(layer, tensor), channels, taps);
        let of_channels =
            channels.into_iter().map(of_channels).collect::<std::result::Result<Vec<_>, OracleError>>()?;
        Ok(Self {
            qkv,
            gates: match spec.gates {
                DeltaGates::Apart => Gates::Apart(vec![linear(Alpha, value_heads)?], linear(Beta, value_heads)?),
                DeltaGates::EachElement(rank) => {
                    let alpha = vec![linear(AlphaDown, rank)?, product(AlphaUp, values, rank)?];
                    Gates::Apart(alpha, linear(Beta, value_heads)?)
                }
                DeltaGates::Together => Gates::Together(linear(BetaAlpha, 2 * value_heads)?),
            },
            output_gate: match spec.output_gate {
                DeltaOutputGate::SigmoidNarrow(rank) => {
                    vec![linear(StateGateDown, rank)?, product(StateGateUp, values, rank)?]
                }
                DeltaOutputGate::Silu => vec![linear(StateGate, values)?],
            },
            taps: Tensor::cat(&of_channels, 0)?,
            step_bias: weights.vector(of_layer(layer, TimeStepBias), spec.alphas())?,
            decay: match spec.gates {
                DeltaGates::Apart | DeltaGates::Together => weights.vector(of_layer(layer, Decay), value_heads)?,
                DeltaGates::EachElement(_) => {
                    weights.matrix(of_layer(layer, HeadDecay), value_heads, 1)?.flatten_all()?
                }
            },
            head_norm: Norm::rms(weights, of_layer(layer, StateNorm), head_dim, eps)?,
            output: Linear::open(weights, of_layer(layer, StateOutput), None, [hidden, spec.values()])?,
            eps: f64::from(eps),
            spec: spec.clone(),
        })
    }

    /// x (rows, hidden) → (rows, hidden). The state is made anew of all rows that the session has.
    pub(crate) fn forward(&self, x: &Tensor, past: &mut PastRows) -> Result<Tensor> {
        let all = past.append(x)?;
        let rows = all.dim(0)?;
        let [q, k, v] = self.qkv(&all)?;
        let (alpha, beta) = self.gates(&all)?;
        // ln(1 + eˣ) · decay is the logarithm of what remains.
        let softplus = (alpha.broadcast_add(&self.step_bias)?.exp()? + 1.0)?.log()?;
        let GatedDeltaSpec { value_heads, head_dim, .. } = self.spec;
        // (rows, value_heads, 1, or as many as a key has elements)
        let softplus = softplus.reshape((rows, value_heads, self.spec.alphas() / value_heads))?;
        let remains = softplus.broadcast_mul(&self.decay.reshape((1, value_heads, 1))?)?.exp()?;
        let beta = sigmoid(&beta)?;
        let mut state = Tensor::zeros((value_heads, head_dim, head_dim), x.dtype(), x.device())?;
        let mut answers = Vec::new();
        for row in 0..rows {
            let of_row = |x: &Tensor| x.get(row)?.unsqueeze(1); // (value_heads, 1, head_dim)
            let of_head = |x: &Tensor| x.get(row)?.reshape((value_heads, 1, 1));
            let (q, k, v) = (of_row(&q)?, of_row(&k)?, of_row(&v)?);
            state = state.broadcast_mul(&remains.get(row)?.unsqueeze(2)?)?;
            let correction = (v - k.matmul(&state)?)?.broadcast_mul(&of_head(&beta)?)?;
            state = (state + k.transpose(1, 2)?.contiguous()?.matmul(&correction)?)?;
            answers.push((q.matmul(&state)? / (head_dim as f64).sqrt())?.squeeze(1)?);
        }
        let answers = self.head_norm.forward(&Tensor::stack(&answers, 0)?)?.flatten_from(1)?;
        let gate = through(&self.output_gate, &all)?;
        let gate = match self.spec.output_gate {
            DeltaOutputGate::SigmoidNarrow(_) => sigmoid(&gate)?,
            DeltaOutputGate::Silu => silu(&gate)?,
        };
        let gated = (answers * gate)?;
        let new = x.dim(0)?;
        self.output.forward(&gated.narrow(0, rows - new, new)?.contiguous()?)
    }

    /// q, k and v, convolved, of each value head: (rows, value_heads, head_dim); q and k as long as 1.
    fn qkv(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let GatedDeltaSpec { key_heads, value_heads, head_dim, .. } = self.spec;
        let (rows, keys) = (x.dim(0)?, key_heads * head_dim);
        let qkv = self.qkv.iter().map(|linear| linear.forward(x)).collect::<Result<Vec<_>>>()?;
        let convolved = convolved(&Tensor::cat(&qkv, 1)?, &self.taps, None)?;
        let unit = |first: usize| -> Result<Tensor> {
            let heads = convolved.narrow(1, first, keys)?.reshape((rows, key_heads, head_dim))?;
            let length = (heads.sqr()?.sum_keepdim(D::Minus1)? + self.eps)?.sqrt()?;
            self.shared(&heads.broadcast_div(&length)?)
        };
        let v = convolved.narrow(1, 2 * keys, value_heads * head_dim)?.reshape((rows, value_heads, head_dim))?;
        Ok([unit(0)?, unit(keys)?, v])
    }

    /// (rows, key_heads, head_dim) → (rows, value_heads, head_dim): each value head's key head.
    fn shared(&self, heads: &Tensor) -> Result<Tensor> {
        let GatedDeltaSpec { key_heads, value_heads, head_dim, .. } = self.spec;
        let (rows, together) = (heads.dim(0)?, value_heads / key_heads);
        let repeated = match self.spec.sharing {
            KeySharing::Adjacent => heads.unsqueeze(2)?.broadcast_as((rows, key_heads, together, head_dim))?,
            KeySharing::InTurn => heads.unsqueeze(1)?.broadcast_as((rows, together, key_heads, head_dim))?,
        };
        repeated.contiguous()?.reshape((rows, value_heads, head_dim))
    }

    /// α, (rows, alphas), and β, (rows, value_heads).
    fn gates(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let GatedDeltaSpec { key_heads, value_heads, .. } = self.spec;
        let (rows, together) = (x.dim(0)?, value_heads / key_heads);
        match &self.gates {
            Gates::Apart(alpha, beta) => Ok((through(alpha, x)?, beta.forward(x)?)),
            Gates::Together(both) => {
                let both = both.forward(x)?.reshape((rows, key_heads, 2, together))?;
                let of = |which| -> Result<Tensor> {
                    let heads = both.narrow(2, which, 1)?.squeeze(2)?; // (rows, key_heads, together)
                    let heads = match self.spec.sharing {
                        KeySharing::Adjacent => heads,
                        KeySharing::InTurn => heads.transpose(1, 2)?,
                    };
                    heads.contiguous()?.reshape((rows, value_heads))
                };
                Ok((of(1)?, of(0)?))
            }
        }
    }
}

/// x through some products, one after another.
fn through(linears: &[Linear], x: &Tensor) -> Result<Tensor> {
    linears.iter().try_fold(x.clone(), |x, linear| linear.forward(&x))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn linear(weight: &[f32], outputs: usize) -> Linear {
        let weight = Tensor::new(weight, &Device::Cpu).unwrap().reshape((outputs, weight.len() / outputs)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    #[test]
    fn a_state_forgets_and_is_corrected() {
        // One head of one element: q = k = v = x through a convolution that sees this row alone, so that the unit q and k are
        // its sign. α and β are 0: half of the error is corrected, and exp(-ln 2) = a half remains.
        let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
        let delta = GatedDelta {
            spec: GatedDeltaSpec {
                key_heads: 1,
                value_heads: 1,
                head_dim: 1,
                taps: 2,
                sharing: KeySharing::Adjacent,
                gates: DeltaGates::Apart,
                inputs: DeltaInputs::Together,
                output_gate: DeltaOutputGate::Silu,
            },
            qkv: vec![linear(&[1.0, 1.0, 1.0], 3)],
            gates: Gates::Apart(vec![linear(&[0.0], 1)], linear(&[0.0], 1)),
            output_gate: vec![linear(&[1.0], 1)],
            taps: tensor(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).reshape((3, 2)).unwrap(),
            step_bias: tensor(&[0.0]),
            decay: tensor(&[-1.0]),
            // x / √(x² + 1e6) · 1e3 is x.
            head_norm: Norm::Rms { gain: tensor(&[1e3]), eps: 1e6 },
            output: linear(&[1.0], 1),
            eps: 0.0,
        };
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let rows = [2.0_f32, 1.0, 3.0];
        let mut state = 0.0;
        let expected = rows.map(|x| {
            state = 0.5 * state + 0.5 * (silu(x) - 0.5 * state);
            state * silu(x)
        });
        let x = Tensor::new(&rows, &Device::Cpu).unwrap().reshape((3, 1)).unwrap();
        let whole = delta.forward(&x, &mut PastRows::default()).unwrap();
        let mut past = PastRows::default();
        let halves = [(0, 2), (2, 1)].map(|(first, rows)| delta.forward(&x.narrow(0, first, rows).unwrap(), &mut past));
        let halves = Tensor::cat(&halves.map(Result::unwrap), 0).unwrap();
        for y in [whole, halves] {
            assert_eq!((y.dims(), y.dtype()), ([3, 1].as_slice(), DType::F32));
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-4), "{y:?} for {expected:?}");
        }
    }
}
