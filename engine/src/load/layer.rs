//! The parts of one layer.

use std::{ops::Range, sync::Arc};

use qmesh_kernels::matrix::Matrix;
use qmesh_models::spec::{
    Activation, AttentionSpec, Bias, BlockIndexerSpec, Ffn, HeadMatrices, IndexerSpec, KvSource, LatentQueries,
    LatentSpec, LayerIndex, LayerInputs, LayerSpec, LayerTensor, Mixer, NormPlacement, OutputGate, OutputScale, QkNorm,
    Sinks, TensorRole, Values,
};

use super::{Weights, shape, turned::turned};
use crate::{
    attention::Attention,
    block::{Block, BlockMixer},
    blocks::BlockIndexer,
    error::EngineError,
    ffn::{FeedForward, FfnInput, FfnWeights},
    indexer::Indexer,
    latent::{LatentAttention, QueryWeights},
    layer_input::LayerInput,
    linear::{Gated, Linear, Norm, Residual},
};

/// One layer's tensors.
pub(super) struct LayerWeights<'a, 'b> {
    pub(super) weights: &'a mut Weights<'b>,
    pub(super) layer: LayerIndex,
    pub(super) hidden: usize,
}

/// Which of the shard's RoPE tables a layer uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerRopes {
    pub(super) own: Option<usize>,
    pub(super) of_indexer: Option<usize>,
}

impl LayerWeights<'_, '_> {
    /// The block that is the shard's `place`-th, and uses these of its tables.
    pub(super) fn block(&mut self, spec: &LayerSpec, place: usize, ropes: LayerRopes) -> Result<Block, EngineError> {
        let mixer = match &spec.mixer {
            Mixer::Attention(attention) => {
                Some(BlockMixer::Attention(self.attention(spec, attention, place, ropes.own)?))
            }
            Mixer::GatedDelta(delta) => Some(BlockMixer::GatedDelta(self.gated_delta(spec, delta, place)?)),
            Mixer::Latent(latent) => Some(BlockMixer::Latent(self.latent(spec, latent, place, ropes)?)),
            Mixer::StateSpace(space) => Some(BlockMixer::StateSpace(self.state_space(spec, space, place)?)),
            Mixer::None => None,
        };
        let ffn = self.ffn(spec, mixer.as_ref().and_then(BlockMixer::norm))?;
        let scale = match spec.output_scale {
            OutputScale::None => None,
            OutputScale::Learned => Some(self.vector(LayerTensor::OutputScale, 1)?[0]),
        };
        Ok(Block { mixer, ffn, input: None, scale })
    }

    /// Where the block that is the shard's `place`-th takes in a row of the token's.
    pub(super) fn input(&mut self, inputs: LayerInputs, place: usize) -> Result<LayerInput, EngineError> {
        use LayerTensor::{InputGate, InputNorm, InputProjection};
        let LayerInputs { width, activation, eps } = inputs;
        let norm = Norm { gain: self.vector(InputNorm, self.hidden)?, bias: None, eps };
        Ok(LayerInput {
            layer: place,
            activation,
            gate: self.linear(InputGate, None, width, self.hidden)?,
            projection: self.linear(InputProjection, None, self.hidden, width)?,
            residual: Residual { norm: Some(norm), scale: 1.0 },
        })
    }

    fn attention(
        &mut self,
        layer: &LayerSpec,
        spec: &AttentionSpec,
        place: usize,
        rope: Option<usize>,
    ) -> Result<Attention, EngineError> {
        use LayerTensor::{
            AttnNorm, AttnNormBias, AttnOutput, AttnOutputBias, HeadGates, K, KBias, PostAttnNorm, Q, QBias,
            Sinks as SinkScores, V, VBias,
        };
        let hidden = self.hidden;
        let (q_width, k_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let own = spec.source == KvSource::Own;
        let qk_norms = self.qk_norms(spec, layer.norm.eps)?;
        let sinks = match spec.sinks {
            Sinks::None => Arc::default(),
            Sinks::PerHead => self.vector(SinkScores, spec.heads)?,
        };
        Ok(Attention {
            layer: match spec.source {
                KvSource::Own => place,
                // It was checked to be in the shard, and before this one.
                KvSource::Layer(source) => place - (self.layer.0 - source.0),
            },
            rope,
            norm: self.norm_before(layer, [AttnNorm, AttnNormBias])?,
            q: self.linear(Q, present(spec.qkv_bias, QBias), spec.query_outputs(), hidden)?,
            k: match spec.source {
                KvSource::Own => Some(self.linear(K, present(spec.qkv_bias, KBias), k_width, hidden)?),
                KvSource::Layer(_) => None,
            },
            v: match spec.values {
                Values::Own | Values::OwnNormed if own => {
                    Some(self.linear(V, present(spec.qkv_bias, VBias), k_width, hidden)?)
                }
                Values::Own | Values::OwnNormed | Values::KeysNormed => None,
            },
            value_norm: match spec.values {
                Values::Own => None,
                Values::OwnNormed | Values::KeysNormed => Some(bare_norm(spec.head_dim, layer.norm.eps)),
            },
            qk_norms,
            head_gates: match spec.output_gate {
                OutputGate::None | OutputGate::WithQuery => None,
                OutputGate::PerHead => Some(self.linear(HeadGates, None, spec.heads, hidden)?),
            },
            indexer: match &spec.blocks {
                Some(indexer) => Some(Box::new(self.block_indexer(layer, indexer, spec.kv_heads, rope)?)),
                None => None,
            },
            sinks,
            output: self.linear(AttnOutput, present(spec.output_bias, AttnOutputBias), hidden, q_width)?,
            residual: self.residual(layer, PostAttnNorm)?,
            spec: spec.clone(),
        })
    }

    /// The norms of q and of k, where there are some, and k is made.
    fn qk_norms(&mut self, spec: &AttentionSpec, eps: f32) -> Result<[Option<Norm>; 2], EngineError> {
        use LayerTensor::{KNorm, QNorm};
        let [q_width, k_width] = match spec.qk_norm {
            QkNorm::None => return Ok([None, None]),
            QkNorm::PerHead | QkNorm::PerHeadRotated => [spec.head_dim; 2],
            QkNorm::PerHeadRotatedBare => return Ok([(); 2].map(|()| Some(bare_norm(spec.head_dim, eps)))),
            QkNorm::AllHeads => [spec.heads, spec.kv_heads].map(|heads| heads * spec.head_dim),
        };
        let mut norm = |tensor, len| Ok::<_, EngineError>(Norm { gain: self.vector(tensor, len)?, bias: None, eps });
        Ok([
            Some(norm(QNorm, q_width)?),
            match spec.source {
                KvSource::Own => Some(norm(KNorm, k_width)?),
                KvSource::Layer(_) => None,
            },
        ])
    }

    fn latent(
        &mut self,
        layer: &LayerSpec,
        spec: &LatentSpec,
        place: usize,
        ropes: LayerRopes,
    ) -> Result<LatentAttention, EngineError> {
        use LayerTensor::{AttnNorm, AttnNormBias, AttnOutput, KB, KvA, KvANorm, PostAttnNorm, Q, QA, QANorm, QB, VB};
        let LatentSpec { heads, latent_dim, plain_dim, value_dim, .. } = *spec;
        let (hidden, width) = (self.hidden, heads * spec.query_dim());
        let rms = |gain| Norm { gain, bias: None, eps: layer.norm.eps };
        let (keys, values) = match spec.matrices {
            HeadMatrices::Apart => (
                self.stacked(KB, None, [heads, latent_dim, plain_dim])?,
                self.stacked(VB, None, [heads, value_dim, latent_dim])?,
            ),
            HeadMatrices::Joined => self.joined(spec)?,
        };
        Ok(LatentAttention {
            layer: place,
            rope: ropes.own,
            norm: self.norm_before(layer, [AttnNorm, AttnNormBias])?,
            queries: match spec.queries {
                LatentQueries::Direct => QueryWeights::Direct(self.linear(Q, None, width, hidden)?),
                LatentQueries::Latent(rank) => QueryWeights::Latent {
                    down: self.linear(QA, None, rank, hidden)?,
                    norm: rms(self.vector(QANorm, rank)?),
                    up: self.linear(QB, None, width, rank)?,
                },
            },
            latent: self.linear(KvA, None, spec.key_dim(), hidden)?,
            latent_norm: rms(self.vector(KvANorm, latent_dim)?),
            keys,
            values,
            output: self.linear(AttnOutput, None, hidden, heads * value_dim)?,
            residual: self.residual(layer, PostAttnNorm)?,
            indexer: match (spec.indexer(), spec.queries, ropes.of_indexer) {
                (Some(indexer), LatentQueries::Latent(rank), Some(rope)) => {
                    Some(Box::new(self.indexer(indexer, rank, rope)?))
                }
                (_, LatentQueries::Latent(_), _) | (_, LatentQueries::Direct, _) => None,
            },
            spec: spec.clone(),
        })
    }

    /// What chooses blocks of positions for so many KV heads.
    fn block_indexer(
        &mut self,
        layer: &LayerSpec,
        spec: &BlockIndexerSpec,
        kv_heads: usize,
        rope: Option<usize>,
    ) -> Result<BlockIndexer, EngineError> {
        use LayerTensor::{IndexKey, IndexKeyNorm, IndexQueries, IndexQueryNorm};
        let (hidden, head_dim) = (self.hidden, spec.head_dim);
        let mut norm = |tensor| {
            Ok::<_, EngineError>(Norm { gain: self.vector(tensor, head_dim)?, bias: None, eps: layer.norm.eps })
        };
        let (query_norm, key_norm) = (norm(IndexQueryNorm)?, norm(IndexKeyNorm)?);
        Ok(BlockIndexer {
            spec: spec.clone(),
            rope,
            queries: self.linear(IndexQueries, None, kv_heads * head_dim, hidden)?,
            query_norm,
            key: self.linear(IndexKey, None, head_dim, hidden)?,
            key_norm,
        })
    }

    /// What chooses positions, of queries' latents of so many elements.
    fn indexer(&mut self, spec: &IndexerSpec, rank: usize, rope: usize) -> Result<Indexer, EngineError> {
        use LayerTensor::{IndexKey, IndexKeyNorm, IndexKeyNormBias, IndexQueries, IndexWeights};
        let IndexerSpec { heads, head_dim, eps, .. } = *spec;
        Ok(Indexer {
            rope,
            queries: self.linear(IndexQueries, None, spec.queries(), rank)?,
            key: self.linear(IndexKey, None, head_dim, self.hidden)?,
            key_norm: Norm {
                gain: self.vector(IndexKeyNorm, head_dim)?,
                bias: Some(self.vector(IndexKeyNormBias, head_dim)?),
                eps,
            },
            weights: self.linear(IndexWeights, None, heads, self.hidden)?,
            spec: spec.clone(),
        })
    }

    /// What each head multiplies its queries by, and what it makes values with, where the file has them as one.
    fn joined(&mut self, spec: &LatentSpec) -> Result<(Vec<Linear>, Vec<Linear>), EngineError> {
        let LatentSpec { heads, latent_dim, plain_dim, value_dim, .. } = *spec;
        let height = plain_dim + value_dim;
        let both = self.stacked(LayerTensor::KvB, None, [heads, height, latent_dim])?;
        let what = || {
            let name = format!("{:?} of layer {}", LayerTensor::KvB, self.layer);
            shape(&name, format!("{plain_dim} and {value_dim} rows a head: not whole groups of 16"))
        };
        let part = |rows: Range<usize>| -> Option<Vec<Matrix>> {
            both.iter().map(|linear| linear.matrix.part(rows.clone())).collect()
        };
        let (keys, values) = part(0..plain_dim).zip(part(plain_dim..height)).ok_or_else(what)?;
        let keys = turned(self.weights.cpu, &keys)?.and_then(|keys| keys.stacked(heads)).ok_or_else(what)?;
        let linears =
            |matrices: Vec<Matrix>| matrices.into_iter().map(|matrix| Linear { matrix, bias: None }).collect();
        Ok((linears(keys), linears(values)))
    }

    /// The second half, if there is one, behind a first one that begins with `first_norm`.
    fn ffn(&mut self, layer: &LayerSpec, first_norm: Option<&Norm>) -> Result<Option<FeedForward>, EngineError> {
        use LayerTensor::{Down, DownBias, FfnNorm, FfnNormBias, PostFfnNorm, Up, UpBias};
        let hidden = self.hidden;
        let weights = match layer.ffn {
            Ffn::Gated { inner, activation, bias } => FfnWeights::Gated(self.gated(inner, activation, bias)?),
            Ffn::Plain { inner, activation, bias } => FfnWeights::Gated(Gated {
                activation,
                gate: self.linear(Up, present(bias, UpBias), inner, hidden)?,
                up: None,
                down: self.linear(Down, present(bias, DownBias), hidden, inner)?,
            }),
            Ffn::Experts(ref spec) => FfnWeights::Experts(Box::new(self.experts(spec)?)),
            Ffn::Both { inner, ref experts } => FfnWeights::Both(Box::new(self.both(layer, inner, experts)?)),
            Ffn::None => return Ok(None),
        };
        let (input, norm) = match layer.norms {
            NormPlacement::Beside => (FfnInput::Layer, first_norm.cloned()),
            NormPlacement::Pre | NormPlacement::PreAndPost | NormPlacement::Post => {
                (FfnInput::Sum, self.norm_before(layer, [FfnNorm, FfnNormBias])?)
            }
        };
        Ok(Some(FeedForward { input, norm, weights, residual: self.residual(layer, PostFfnNorm)? }))
    }

    pub(super) fn gated(&mut self, inner: usize, activation: Activation, bias: Bias) -> Result<Gated, EngineError> {
        use LayerTensor::{Down, DownBias, Gate, GateBias, Up, UpBias};
        let hidden = self.hidden;
        Ok(Gated {
            activation,
            gate: self.linear(Gate, present(bias, GateBias), inner, hidden)?,
            up: Some(self.linear(Up, present(bias, UpBias), inner, hidden)?),
            down: self.linear(Down, present(bias, DownBias), hidden, inner)?,
        })
    }

    /// The norm before a half, where there is one.
    pub(super) fn norm_before(
        &mut self,
        layer: &LayerSpec,
        tensors: [LayerTensor; 2],
    ) -> Result<Option<Norm>, EngineError> {
        let roles = tensors.map(|tensor| TensorRole::Layer(self.layer, tensor));
        match layer.norms {
            NormPlacement::Pre | NormPlacement::PreAndPost | NormPlacement::Beside => {
                self.weights.norm(roles, self.hidden, layer.norm).map(Some)
            }
            NormPlacement::Post => Ok(None),
        }
    }

    pub(super) fn residual(&mut self, layer: &LayerSpec, tensor: LayerTensor) -> Result<Residual, EngineError> {
        let norm = match layer.norms {
            NormPlacement::Pre | NormPlacement::Beside => None,
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

    /// The products of experts or heads, whose matrices lie one below the other.
    pub(super) fn stacked(
        &mut self,
        tensor: LayerTensor,
        biases: Option<LayerTensor>,
        [count, rows, cols]: [usize; 3],
    ) -> Result<Vec<Linear>, EngineError> {
        let all = self.weights.matrix(TensorRole::Layer(self.layer, tensor), count * rows, cols)?;
        let biases = self.biases(biases, count, rows)?;
        let matrices = all.stacked(count).ok_or_else(|| self.no_whole_groups(tensor, rows))?;
        Ok(matrices.into_iter().zip(biases).map(|(matrix, bias)| Linear { matrix, bias }).collect())
    }

    /// The biases of so many matrices of `rows` rows, if they have some.
    pub(super) fn biases(
        &mut self,
        biases: Option<LayerTensor>,
        count: usize,
        rows: usize,
    ) -> Result<Vec<Option<Arc<[f32]>>>, EngineError> {
        let Some(biases) = biases else { return Ok(vec![None; count]) };
        let all = self.weights.rows(TensorRole::Layer(self.layer, biases), count, rows)?;
        Ok(all.chunks_exact(rows).map(|bias| Some(Arc::from(bias))).collect())
    }

    pub(super) fn no_whole_groups(&self, tensor: LayerTensor, rows: usize) -> EngineError {
        let name = format!("{tensor:?} of layer {}", self.layer);
        shape(&name, format!("{rows} rows a matrix: not whole groups of 16"))
    }
}

/// An RMS norm without gains.
fn bare_norm(len: usize, eps: f32) -> Norm {
    Norm { gain: vec![1.0; len].into(), bias: None, eps }
}

pub(super) fn present(bias: Bias, tensor: LayerTensor) -> Option<LayerTensor> {
    match bias {
        Bias::None => None,
        Bias::Present => Some(tensor),
    }
}
