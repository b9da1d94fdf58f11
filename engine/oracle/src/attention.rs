//! Grouped-query attention of the rows of one session, between its norms.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};
use qmesh_models::spec::{AttentionSpec, Bias, KvSource, LayerIndex, LayerTensor, OutputGate, QkNorm, Sinks, Values};

use crate::{
    blocks::BlockIndexer,
    cache::{KeysValues, LayerCache},
    error::OracleError,
    linear::Linear,
    mask::mask,
    norm::Norm,
    rope::Rotation,
    rounding::CacheType,
    temperature::tempered,
    weights::{Weights, bias_of, of_layer},
};

/// The attention of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    spec: AttentionSpec,
    q: Linear,
    /// Nothing where keys and values are those of an earlier layer.
    k: Option<Linear>,
    /// Nothing where values are keys, either.
    v: Option<Linear>,
    value_norm: Option<Norm>,
    /// Of q and of k.
    qk_norms: [Option<Norm>; 2],
    rotation: Option<Rotation>,
    indexer: Option<Box<BlockIndexer>>,
    /// What makes a gate for each head of what it attends.
    head_gates: Option<Linear>,
    /// (heads)
    sinks: Option<Tensor>,
    output: Linear,
    cached_as: CacheType,
}

impl Attention {
    /// The attention of `layer`, whose norms have `eps`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &AttentionSpec,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{
            AttnOutput, AttnOutputBias, HeadGates, K, KBias, KNorm, Q, QBias, QNorm, Sinks as SinkScores, V, VBias,
        };
        let AttentionSpec { heads, kv_heads, head_dim, .. } = *spec;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(OracleError::Heads { heads, kv_heads });
        }
        let own = spec.source == KvSource::Own;
        let (hidden, width, kv_width) = (weights.spec.hidden, heads * head_dim, kv_heads * head_dim);
        let linear = |tensor, bias, bias_tensor, shape| {
            Linear::open(weights, of_layer(layer, tensor), bias_of(layer, bias, bias_tensor), shape)
        };
        let norm = |tensor, len| Norm::rms(weights, of_layer(layer, tensor), len, eps);
        let rotation =
            spec.rope.as_ref().map(|rope| Rotation::open(weights, rope, weights.spec.context)).transpose()?;
        Ok(Self {
            q: linear(Q, spec.qkv_bias, QBias, [spec.query_outputs(), hidden])?,
            k: own.then(|| linear(K, spec.qkv_bias, KBias, [kv_width, hidden])).transpose()?,
            v: match spec.values {
                Values::Own | Values::OwnNormed if own => Some(linear(V, spec.qkv_bias, VBias, [kv_width, hidden])?),
                Values::Own | Values::OwnNormed | Values::KeysNormed => None,
            },
            value_norm: match spec.values {
                Values::Own => None,
                Values::OwnNormed | Values::KeysNormed => Some(Norm::bare(weights, head_dim, eps)?),
            },
            qk_norms: match spec.qk_norm {
                QkNorm::None => [None, None],
                QkNorm::PerHead | QkNorm::PerHeadRotated => {
                    [Some(norm(QNorm, head_dim)?), own.then(|| norm(KNorm, head_dim)).transpose()?]
                }
                QkNorm::PerHeadRotatedBare => {
                    let bare = Norm::bare(weights, head_dim, eps)?;
                    [Some(bare.clone()), Some(bare)]
                }
                QkNorm::AllHeads => [Some(norm(QNorm, width)?), own.then(|| norm(KNorm, kv_width)).transpose()?],
            },
            rotation,
            indexer: match &spec.blocks {
                Some(indexer) => Some(Box::new(BlockIndexer::open(weights, layer, spec, indexer, eps)?)),
                None => None,
            },
            head_gates: match spec.output_gate {
                OutputGate::None | OutputGate::WithQuery => None,
                OutputGate::PerHead => Some(linear(HeadGates, Bias::None, AttnOutputBias, [heads, hidden])?),
            },
            sinks: match spec.sinks {
                Sinks::None => None,
                Sinks::PerHead => Some(weights.vector(of_layer(layer, SinkScores), heads)?),
            },
            output: linear(AttnOutput, spec.output_bias, AttnOutputBias, [hidden, width])?,
            cached_as: weights.rounding.cache,
            spec: spec.clone(),
        })
    }

    /// x (rows, hidden), whose first row is at `first_position`, → (rows, hidden). The rows' keys and values are in the
    /// cache afterwards.
    pub(crate) fn forward(&self, x: &Tensor, first_position: usize, cache: &mut LayerCache) -> Result<Tensor> {
        let q_norm = self.qk_norms[0].as_ref();
        let (q, gate) = self.query(x)?;
        let q = self.placed(self.heads(&q, q_norm)?, q_norm, first_position)?;
        let q = tempered(&q, self.spec.temperature, first_position)?;
        if let Some(k) = &self.k {
            self.append(&k.forward(x)?, x, first_position, &mut cache.keys_values)?;
        }
        let Some((k, v)) = cache.keys_values.held() else { candle_core::bail!("no keys to attend to") };
        let mask = match &self.indexer {
            Some(indexer) => indexer.mask(&cache.past.append(x)?, x.dim(0)?)?,
            None => mask(x.dim(0)?, first_position, self.spec.window, x.device())?,
        };
        let attended = self.attend(&q, &k, &v, &mask)?; // (heads, rows, head_dim)
        let rows = attended.transpose(0, 1)?.contiguous()?.flatten_from(1)?;
        match gate {
            Some(gate) => self.output.forward(&(rows * sigmoid(&gate)?)?),
            None => self.output.forward(&rows),
        }
    }

    /// Appends the keys and values of x (rows, hidden), whose keys are projected to `keys`.
    fn append(&self, keys: &Tensor, x: &Tensor, first_position: usize, cache: &mut KeysValues) -> Result<()> {
        let k_norm = self.qk_norms[1].as_ref();
        let k = self.placed(self.heads(keys, k_norm)?, k_norm, first_position)?;
        let v = match &self.v {
            Some(v) => self.heads(&v.forward(x)?, None)?,
            None => self.heads(keys, None)?,
        };
        let v = match &self.value_norm {
            Some(norm) => norm.forward(&v)?,
            None => v,
        };
        cache.append(&k, &v, self.cached_as).map(drop)
    }

    /// q of all heads and, where there are some, the gates of what they attend: (rows, heads · head_dim) each.
    fn query(&self, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let (q, AttentionSpec { heads, head_dim, .. }) = (self.q.forward(x)?, &self.spec);
        match self.spec.output_gate {
            OutputGate::None => Ok((q, None)),
            OutputGate::PerHead => {
                let (rows, gates) = (x.dim(0)?, self.head_gates.as_ref().map(|gates| gates.forward(x)).transpose()?);
                let spread =
                    |gates: Tensor| gates.unsqueeze(2)?.broadcast_as((rows, *heads, *head_dim))?.flatten_from(1);
                Ok((q, gates.map(spread).transpose()?))
            }
            OutputGate::WithQuery => {
                let both = q.reshape((x.dim(0)?, *heads, 2, *head_dim))?;
                let half = |which| both.narrow(2, which, 1)?.contiguous()?.flatten_from(1);
                Ok((half(0)?, Some(half(1)?)))
            }
        }
    }

    /// x (rows, heads · head_dim) → (heads, rows, head_dim), normalised where there is a norm: over the whole row or over
    /// each head.
    fn heads(&self, x: &Tensor, norm: Option<&Norm>) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let x = match (self.spec.qk_norm, norm) {
            (QkNorm::AllHeads, Some(norm)) => norm.forward(x)?,
            (QkNorm::PerHead | QkNorm::PerHeadRotated | QkNorm::PerHeadRotatedBare | QkNorm::None, _) | (_, None) => {
                x.clone()
            }
        };
        let x = x.reshape((rows, width / self.spec.head_dim, self.spec.head_dim))?;
        let x = match (self.spec.qk_norm, norm) {
            (QkNorm::PerHead, Some(norm)) => norm.forward(&x)?,
            (QkNorm::AllHeads | QkNorm::PerHeadRotated | QkNorm::PerHeadRotatedBare | QkNorm::None, _) | (_, None) => x,
        };
        x.transpose(0, 1)?.contiguous()
    }

    /// Rotated by position, where the layer knows positions, and normalised where that is done afterwards.
    fn placed(&self, x: Tensor, norm: Option<&Norm>, first_position: usize) -> Result<Tensor> {
        let x = match &self.rotation {
            Some(rotation) => rotation.forward(&x, first_position)?,
            None => x,
        };
        match (self.spec.qk_norm, norm) {
            (QkNorm::PerHeadRotated | QkNorm::PerHeadRotatedBare, Some(norm)) => norm.forward(&x),
            (QkNorm::AllHeads | QkNorm::PerHead | QkNorm::None, _) | (_, None) => Ok(x),
        }
    }

    /// softmax(scale · q·k)·v of q (heads, rows, head_dim) and k and v (kv_heads, positions, head_dim), of which each sees what
    /// `mask`, (rows, positions) or one for each head, leaves it: (heads, rows, head_dim).
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let AttentionSpec { heads, kv_heads, head_dim, scale, soft_cap, .. } = self.spec;
        let (rows, positions) = (q.dim(1)?, k.dim(1)?);
        // The query heads of one key/value head follow each other: they are rows of one product.
        let together = heads / kv_heads * rows;
        let scores = q.reshape((kv_heads, together, head_dim))?.matmul(&k.t()?.contiguous()?)?;
        let mut scores = (scores.reshape((heads, rows, positions))? * f64::from(scale))?;
        if let Some(cap) = soft_cap.map(f64::from) {
            scores = ((scores / cap)?.tanh()? * cap)?;
        }
        scores = scores.broadcast_add(mask)?;
        // A sink is one more score without a value.
        if let Some(sinks) = &self.sinks {
            scores =
                Tensor::cat(&[scores, sinks.reshape((heads, 1, 1))?.broadcast_as((heads, rows, 1))?.contiguous()?], 2)?;
        }
        let shares = softmax_last_dim(&scores)?.narrow(D::Minus1, 0, positions)?.contiguous()?;
        let attended = shares.reshape((kv_heads, together, positions))?.matmul(&v.contiguous()?)?;
        attended.reshape((heads, rows, head_dim))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::spec::Window;

    use super::*;

    fn linear(weight: &[[f32; 2]]) -> Linear {
        let weight = Tensor::new(weight.as_flattened(), &Device::Cpu).unwrap().reshape((weight.len(), 2)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    /// Two query heads of one element, q = x₀ and 2·x₀, and one key and value head, k = x₀ and v = x₁. What comes out is
    /// what the two heads attended to.
    fn attention(soft_cap: Option<f32>, window: Window, sinks: Option<[f32; 2]>) -> Attention {
        let sinks = sinks.map(|sinks| Tensor::new(&sinks, &Device::Cpu).unwrap());
        Attention {
            spec: AttentionSpec {
                heads: 2,
                kv_heads: 1,
                head_dim: 1,
                scale: 0.5,
                soft_cap,
                sinks: if sinks.is_some() { Sinks::PerHead } else { Sinks::None },
                window,
                rope: None,
                qk_norm: QkNorm::None,
                temperature: None,
                source: KvSource::Own,
                values: Values::Own,
                blocks: None,
                qkv_bias: Bias::None,
                output_bias: Bias::None,
                output_gate: OutputGate::None,
            },
            q: linear(&[[1.0, 0.0], [2.0, 0.0]]),
            k: Some(linear(&[[1.0, 0.0]])),
            v: Some(linear(&[[0.0, 1.0]])),
            value_norm: None,
            qk_norms: [None, None],
            rotation: None,
            indexer: None,
            head_gates: None,
            sinks,
            output: linear(&[[1.0, 0.0], [0.0, 1.0]]),
            cached_as: CacheType::F32,
        }
    }

    const ROWS: [[f32; 2]; 3] = [[1.0, 10.0], [-1.0, 20.0], [2.0, 40.0]];

    /// What the last of the rows attends to with one head: the values by the shares of `weights`.
    fn expected(weights: [f64; 3], sink: f64) -> f32 {
        let sum = weights.iter().sum::<f64>() + sink;
        (weights.iter().zip(ROWS).map(|(weight, [_, v])| weight * f64::from(v)).sum::<f64>() / sum) as f32
    }

    fn last_row(attention: &Attention) -> Vec<f32> {
        let whole = attention.forward(&linear(&ROWS).weight, 0, &mut LayerCache::default()).unwrap();
        let mut cache = LayerCache::default();
        let steps = [&ROWS[..2], &ROWS[2..]].map(|rows| linear(rows).weight);
        attention.forward(&steps[0], 0, &mut cache).unwrap();
        let last = attention.forward(&steps[1], 2, &mut cache).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let whole = whole.to_vec2::<f32>().unwrap().remove(2);
        assert!(whole.iter().zip(&last).all(|(a, b)| (a - b).abs() < 1e-5), "in one step or in two");
        last
    }

    #[test]
    fn heads_weigh_values_by_their_scores() {
        let near = |attention: Attention, expected: [f32; 2]| {
            let found = last_row(&attention);
            assert!(found.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-4), "{found:?} for {expected:?}");
        };
        // The last row's queries are 2 and 4, so that the scaled scores are 1, -1, 2 and 2, -2, 4.
        let exps = |scores: [f64; 3]| scores.map(f64::exp);
        let (first, second) = (exps([1.0, -1.0, 2.0]), exps([2.0, -2.0, 4.0]));
        near(attention(None, Window::Full, None), [expected(first, 0.0), expected(second, 0.0)]);
        let ([.., b, c], [.., e, f]) = (first, second);
        let windowed = [expected([0.0, b, c], 0.0), expected([0.0, e, f], 0.0)];
        near(attention(None, Window::Sliding(2), None), windowed);
        let sunk = [expected(first, 3_f64.exp()), expected(second, 1.0)];
        near(attention(None, Window::Full, Some([3.0, 0.0])), sunk);
        let capped = |scores: [f64; 3]| exps(scores.map(|score| 1.5 * (score / 1.5).tanh()));
        let capped = [expected(capped([1.0, -1.0, 2.0]), 0.0), expected(capped([2.0, -2.0, 4.0]), 0.0)];
        near(attention(Some(1.5), Window::Full, None), capped);
    }

    #[test]
    fn norms_are_over_a_head_or_over_all_of_them() {
        let gain = |len: usize| Norm::Rms {
            gain: Tensor::ones(len, candle_core::DType::F32, &Device::Cpu).unwrap(),
            eps: 0.0,
        };
        let mut attention = attention(None, Window::Full, None);
        let x = linear(&[[3.0, 4.0]]).weight;
        attention.spec.qk_norm = QkNorm::AllHeads;
        let all = attention.heads(&x, Some(&gain(2))).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let root = 12.5_f32.sqrt();
        assert!((all[0] - 3.0 / root).abs() < 1e-6 && (all[1] - 4.0 / root).abs() < 1e-6, "{all:?}");
        attention.spec.qk_norm = QkNorm::PerHead;
        let each = attention.heads(&x, Some(&gain(1))).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(each, [1.0, 1.0]);
    }
}
