//! From a spec and a source of tensors to the parts of a shard. The spec comes from outside: nothing in it is trusted.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use qmesh_models::spec::{
    AttentionSpec, Bias, Ffn, HeadMatrix, LayerIndex, LayerSpec, LayerTensor, ModelSpec, NormPlacement, QkNorm, Rope,
    RopeScaling, Sinks, TensorRole, TensorSpec, Window,
};

use crate::{
    attention::Attention,
    block::Block,
    error::EngineError,
    ffn::GatedFfn,
    kernel::{
        Machine,
        buffer::{Buffer, Bytes},
        lanes::LANES,
        matrix::Matrix,
        rope::Frequencies,
    },
    linear::{Linear, Norm},
    shard::TensorSource,
};

/// What a shard computes with.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The table that stage 0 embeds with.
    pub(crate) embedding: Option<Arc<Linear>>,
    pub(crate) blocks: Vec<Block>,
    /// The kinds of RoPE that the blocks refer to.
    pub(crate) ropes: Vec<Frequencies>,
    /// Of the last stage.
    pub(crate) head: Option<Head>,
}

/// From the last hidden state to logits.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) norm: Norm,
    pub(crate) matrix: Arc<Linear>,
    /// Logits x become cap · tanh(x / cap).
    pub(crate) soft_cap: Option<f32>,
}

/// Reads, packs and assembles the shard of `layers`.
pub(crate) fn load(
    machine: Machine<'_>,
    spec: &ModelSpec,
    layers: &Range<usize>,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64),
) -> Result<Parts, EngineError> {
    check(spec, layers)?;
    let mut weights = Weights::read(machine, spec, layers, source, progress)?;
    let parts = weights.parts(spec, layers)?;
    match weights.tensors.into_values().next() {
        Some((tensor, _)) => Err(EngineError::LeftoverTensor { tensor }),
        None => Ok(parts),
    }
}

/// No dimension of a real model comes near this; products of two of them cannot overflow.
const DIMENSION_MAX: usize = 1 << 24;

fn check(spec: &ModelSpec, layers: &Range<usize>) -> Result<(), EngineError> {
    if layers.is_empty() || layers.end > spec.layers.len() {
        return Err(EngineError::Layers { range: layers.clone(), count: spec.layers.len() });
    }
    dimension("hidden", spec.hidden)?;
    dimension("vocab", spec.vocab)?;
    positive("embedding_scale", spec.embedding_scale)?;
    positive("head.norm_eps", spec.head.norm_eps)?;
    positive("head.soft_cap", spec.head.soft_cap.unwrap_or(1.0))?;
    for layer in &spec.layers[layers.clone()] {
        check_attention(&layer.attention)?;
        positive("norm_eps", layer.norm_eps)?;
        let Ffn::Gated { inner, .. } = layer.ffn;
        dimension("inner", inner)?;
    }
    Ok(())
}

fn check_attention(attention: &AttentionSpec) -> Result<(), EngineError> {
    let AttentionSpec { heads, kv_heads, head_dim, scale, soft_cap, window, rope, .. } = attention;
    dimension("heads", *heads)?;
    dimension("kv_heads", *kv_heads)?;
    dimension("head_dim", *head_dim)?;
    dimension("heads * head_dim", heads * head_dim)?;
    if heads % kv_heads != 0 {
        return Err(wrong(format!("{heads} heads cannot share {kv_heads} kv_heads evenly")));
    }
    positive("attention.scale", *scale)?;
    positive("attention.soft_cap", soft_cap.unwrap_or(1.0))?;
    if *window == Window::Sliding(0) {
        return Err(wrong("a sliding window of 0 positions".into()));
    }
    if rope.dims % 2 != 0 || rope.dims > *head_dim {
        return Err(wrong(format!("rope.dims {} is odd or exceeds head_dim {head_dim}", rope.dims)));
    }
    positive("rope.base", rope.base)?;
    match rope.scaling {
        RopeScaling::Linear(factor) => positive("rope.scaling", factor),
        RopeScaling::None | RopeScaling::Factors => Ok(()),
    }
}

fn dimension(name: &str, value: usize) -> Result<(), EngineError> {
    let fits = (1..=DIMENSION_MAX).contains(&value);
    fits.then_some(()).ok_or_else(|| wrong(format!("{name} = {value} is not in 1..={DIMENSION_MAX}")))
}

fn positive(name: &str, value: f32) -> Result<(), EngineError> {
    let fits = value.is_normal() && value > 0.0;
    fits.then_some(()).ok_or_else(|| wrong(format!("{name} = {value} is not a positive number")))
}

fn wrong(what: String) -> EngineError {
    EngineError::Spec { what }
}

/// The shard's tensors, until the parts have taken them.
struct Weights<'a> {
    machine: Machine<'a>,
    tensors: BTreeMap<TensorRole, (String, Matrix)>,
}

impl<'a> Weights<'a> {
    /// Reads the tensors into one buffer and packs each in its place.
    fn read(
        machine: Machine<'a>,
        spec: &ModelSpec,
        layers: &Range<usize>,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, EngineError> {
        let own = spec.tensors.iter().filter(|t| spec.holds(layers, t.role));
        let (places, total) = places(own)?;
        let mut shared = buffer(total, "the shard")?;
        let (mut vectors, mut loaded) = (BTreeMap::new(), 0);
        for Place { tensor, packed } in &places {
            if tensor.rows > 1 {
                read_tensor(machine, tensor, source, &mut shared.bytes_mut()[packed.clone()])?;
            } else {
                // A vector would take sixteen times its room, for good: it gets its own, which is soon freed.
                let mut own = buffer(packed.len(), &tensor.name)?;
                read_tensor(machine, tensor, source, own.bytes_mut())?;
                vectors.insert(tensor.role, own);
            }
            loaded += tensor.bytes;
            progress(loaded);
        }
        let shared = Arc::new(shared);
        let mut tensors = BTreeMap::new();
        for Place { tensor, packed } in places {
            let buffer = vectors.remove(&tensor.role).map_or_else(|| Arc::clone(&shared), Arc::new);
            let TensorSpec { ref name, role, rows, cols, dtype, .. } = *tensor;
            let matrix = Matrix { dtype, rows, cols, bytes: Bytes::new(buffer, packed) };
            if tensors.insert(role, (name.clone(), matrix)).is_some() {
                return Err(shape(name, format!("{role:?} is listed twice")));
            }
        }
        Ok(Self { machine, tensors })
    }

    fn parts(&mut self, spec: &ModelSpec, layers: &Range<usize>) -> Result<Parts, EngineError> {
        let (first, last) = (layers.start == 0, layers.end == spec.layers.len());
        let tied = spec.head.matrix == HeadMatrix::Tied;
        let table = (first || (last && tied))
            .then(|| self.linear(TensorRole::Embedding, None, spec.vocab, spec.hidden).map(Arc::new))
            .transpose()?;
        let head = last.then(|| self.head(spec, table.clone().filter(|_| tied))).transpose()?;
        let (ropes, uses) = self.ropes(&spec.layers[layers.clone()])?;
        let blocks = layers.clone().zip(uses).enumerate();
        let blocks = blocks.map(|(place, (layer, rope))| {
            LayerWeights { weights: self, layer: LayerIndex(layer), hidden: spec.hidden }.block(
                &spec.layers[layer],
                place,
                rope,
            )
        });
        Ok(Parts { blocks: blocks.collect::<Result<_, _>>()?, embedding: table.filter(|_| first), ropes, head })
    }

    fn head(&mut self, spec: &ModelSpec, table: Option<Arc<Linear>>) -> Result<Head, EngineError> {
        let norm = self.norm(TensorRole::OutputNorm, spec.hidden, spec.head.norm_eps)?;
        let matrix = match table {
            Some(table) => table,
            None => Arc::new(self.linear(TensorRole::Output, None, spec.vocab, spec.hidden)?),
        };
        Ok(Head { norm, matrix, soft_cap: spec.head.soft_cap })
    }

    /// The different kinds of RoPE, and which of them each layer uses.
    fn ropes(&mut self, layers: &[LayerSpec]) -> Result<(Vec<Frequencies>, Vec<usize>), EngineError> {
        let mut kinds: Vec<&Rope> = Vec::new();
        let uses = layers.iter().map(|layer| {
            let rope = &layer.attention.rope;
            kinds.iter().position(|kind| *kind == rope).unwrap_or_else(|| {
                kinds.push(rope);
                kinds.len() - 1
            })
        });
        let uses = uses.collect();
        // Every shard is given the factors, whether or not its own layers use them.
        let factors = self.tensors.remove(&TensorRole::RopeFactors);
        let factors = factors.map(|(name, matrix)| (name, matrix.vector(self.machine.simd)));
        let frequencies = kinds.into_iter().map(|rope| match (&rope.scaling, &factors) {
            (RopeScaling::Factors, None) => Err(missing(TensorRole::RopeFactors)),
            (RopeScaling::Factors, Some((_, factors))) if factors.len() == rope.dims / 2 => {
                Ok(Frequencies::new(rope, factors))
            }
            (RopeScaling::Factors, Some((name, factors))) => {
                Err(shape(name, format!("{} factors instead of {}", factors.len(), rope.dims / 2)))
            }
            (RopeScaling::None | RopeScaling::Linear(_), _) => Ok(Frequencies::new(rope, &[])),
        });
        Ok((frequencies.collect::<Result<_, _>>()?, uses))
    }

    fn linear(
        &mut self,
        role: TensorRole,
        bias: Option<TensorRole>,
        rows: usize,
        cols: usize,
    ) -> Result<Linear, EngineError> {
        let bias = bias.map(|role| self.vector(role, rows)).transpose()?;
        Ok(Linear { matrix: self.matrix(role, rows, cols)?, bias })
    }

    fn norm(&mut self, role: TensorRole, len: usize, eps: f32) -> Result<Norm, EngineError> {
        Ok(Norm { gain: self.vector(role, len)?, eps })
    }

    fn vector(&mut self, role: TensorRole, len: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.matrix(role, 1, len)?.vector(self.machine.simd))
    }

    fn matrix(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
        let (name, matrix) = self.tensors.remove(&role).ok_or_else(|| missing(role))?;
        if (matrix.rows, matrix.cols) != (rows, cols) {
            return Err(shape(&name, format!("{}x{} instead of {rows}x{cols}", matrix.rows, matrix.cols)));
        }
        Ok(matrix)
    }
}

/// One layer's tensors.
struct LayerWeights<'a, 'b> {
    weights: &'a mut Weights<'b>,
    layer: LayerIndex,
    hidden: usize,
}

impl LayerWeights<'_, '_> {
    fn block(&mut self, spec: &LayerSpec, place: usize, rope: usize) -> Result<Block, EngineError> {
        let attention = self.attention(spec, place, rope)?;
        Ok(Block { attention, ffn: self.ffn(spec)? })
    }

    fn attention(&mut self, layer: &LayerSpec, place: usize, rope: usize) -> Result<Attention, EngineError> {
        use LayerTensor::{
            AttnNorm, AttnOutput, K, KBias, KNorm, PostAttnNorm, Q, QBias, QNorm, Sinks as SinkScores, V, VBias,
        };
        let spec = layer.attention.clone();
        let (hidden, eps) = (self.hidden, layer.norm_eps);
        let (q_width, k_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let bias = |tensor| match spec.qkv_bias {
            Bias::None => None,
            Bias::Present => Some(tensor),
        };
        let qk_norms = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([self.norm(QNorm, spec.head_dim, eps)?, self.norm(KNorm, spec.head_dim, eps)?]),
        };
        let sinks = match spec.sinks {
            Sinks::None => vec![],
            Sinks::PerHead => self.vector(SinkScores, spec.heads)?,
        };
        Ok(Attention {
            layer: place,
            rope,
            norm: self.norm(AttnNorm, hidden, eps)?,
            q: self.linear(Q, bias(QBias), q_width, hidden)?,
            k: self.linear(K, bias(KBias), k_width, hidden)?,
            v: self.linear(V, bias(VBias), k_width, hidden)?,
            qk_norms,
            sinks,
            output: self.linear(AttnOutput, None, hidden, q_width)?,
            post_norm: self.post_norm(layer, PostAttnNorm)?,
            spec,
        })
    }

    fn ffn(&mut self, layer: &LayerSpec) -> Result<GatedFfn, EngineError> {
        use LayerTensor::{Down, FfnNorm, Gate, PostFfnNorm, Up};
        let Ffn::Gated { inner, activation } = layer.ffn;
        Ok(GatedFfn {
            activation,
            norm: self.norm(FfnNorm, self.hidden, layer.norm_eps)?,
            gate: self.linear(Gate, None, inner, self.hidden)?,
            up: self.linear(Up, None, inner, self.hidden)?,
            down: self.linear(Down, None, self.hidden, inner)?,
            post_norm: self.post_norm(layer, PostFfnNorm)?,
        })
    }

    fn post_norm(&mut self, layer: &LayerSpec, tensor: LayerTensor) -> Result<Option<Norm>, EngineError> {
        match layer.norms {
            NormPlacement::Pre => Ok(None),
            NormPlacement::PreAndPost => self.norm(tensor, self.hidden, layer.norm_eps).map(Some),
        }
    }

    fn vector(&mut self, tensor: LayerTensor, len: usize) -> Result<Vec<f32>, EngineError> {
        self.weights.vector(TensorRole::Layer(self.layer, tensor), len)
    }

    fn norm(&mut self, tensor: LayerTensor, len: usize, eps: f32) -> Result<Norm, EngineError> {
        self.weights.norm(TensorRole::Layer(self.layer, tensor), len, eps)
    }

    fn linear(
        &mut self,
        tensor: LayerTensor,
        bias: Option<LayerTensor>,
        rows: usize,
        cols: usize,
    ) -> Result<Linear, EngineError> {
        let bias = bias.map(|bias| TensorRole::Layer(self.layer, bias));
        self.weights.linear(TensorRole::Layer(self.layer, tensor), bias, rows, cols)
    }
}

/// Where a tensor lies in the shard's buffer; a vector's place is only a length.
struct Place<'a> {
    tensor: &'a TensorSpec,
    packed: Range<usize>,
}

/// A place for each tensor, and the bytes that the matrices take together.
fn places<'a>(tensors: impl Iterator<Item = &'a TensorSpec>) -> Result<(Vec<Place<'a>>, usize), EngineError> {
    const LINE: usize = 64;
    let mut total: usize = 0;
    let mut places = Vec::new();
    for tensor in tensors {
        let TensorSpec { ref name, rows, cols, dtype, bytes, .. } = *tensor;
        let row = dtype.row_bytes(cols).filter(|row| row.checked_mul(rows).is_some_and(|len| len as u64 == bytes));
        let len = row.and_then(|row| Matrix::packed_len(dtype, rows, row)).filter(|len| *len > 0);
        let start = if rows > 1 { total.next_multiple_of(LINE) } else { 0 };
        let end = len.and_then(|len| start.checked_add(len)).ok_or_else(|| {
            shape(name, format!("{bytes} bytes cannot be {rows} rows of {cols} {dtype} elements, or not be packed"))
        })?;
        if rows > 1 {
            total = end;
        }
        places.push(Place { tensor, packed: start..end });
    }
    Ok((places, total))
}

fn buffer(len: usize, what: &str) -> Result<Buffer, EngineError> {
    Buffer::new(len).ok_or_else(|| EngineError::OutOfMemory { needed: len as u64, tensor: what.into() })
}

/// Reads a tensor of checked size into its place and packs it there.
fn read_tensor(
    machine: Machine<'_>,
    tensor: &TensorSpec,
    source: &dyn TensorSource,
    place: &mut [u8],
) -> Result<(), EngineError> {
    let row_bytes = place.len() / tensor.rows.next_multiple_of(LANES);
    source.read(tensor, &mut place[..row_bytes * tensor.rows])?;
    Matrix::pack(machine.team, tensor.dtype, row_bytes, &mut place[..row_bytes * tensor.rows.next_multiple_of(LANES)]);
    Ok(())
}

fn missing(role: TensorRole) -> EngineError {
    let tensor = match role {
        TensorRole::Layer(layer, tensor) => format!("{tensor:?} of layer {layer}"),
        TensorRole::Embedding | TensorRole::OutputNorm | TensorRole::Output | TensorRole::RopeFactors => {
            format!("{role:?}")
        }
    };
    EngineError::MissingTensor { tensor }
}

fn shape(tensor: &str, what: String) -> EngineError {
    EngineError::TensorShape { tensor: tensor.into(), what }
}
