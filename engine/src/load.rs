//! From a spec and a source of tensors to the parts of a shard. The spec comes from outside: nothing in it is trusted.

mod check;
mod layer;

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use qmesh_models::spec::{
    HeadMatrix, LayerIndex, LayerSpec, ModelSpec, NormKind, NormSpec, Rope, RopeScaling, TensorRole, TensorSpec,
};

use self::layer::LayerWeights;
use crate::{
    block::Block,
    error::EngineError,
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
    /// Factor on the logits.
    pub(crate) scale: f32,
}

/// Reads, packs and assembles the shard of `layers`.
pub(crate) fn load(
    machine: Machine<'_>,
    spec: &ModelSpec,
    layers: &Range<usize>,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64),
) -> Result<Parts, EngineError> {
    check::check(spec, layers)?;
    let mut weights = Weights::read(machine, spec, layers, source, progress)?;
    let parts = weights.parts(spec, layers)?;
    match weights.tensors.into_values().next() {
        Some((tensor, _)) => Err(EngineError::LeftoverTensor { tensor }),
        None => Ok(parts),
    }
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
        let (ropes, uses) = self.ropes(&spec.layers[layers.clone()], spec.context)?;
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
        let roles = [TensorRole::OutputNorm, TensorRole::OutputNormBias];
        let norm = self.norm(roles, spec.hidden, spec.head.norm)?;
        let matrix = match table {
            Some(table) => table,
            None => Arc::new(self.linear(TensorRole::Output, None, spec.vocab, spec.hidden)?),
        };
        Ok(Head { norm, matrix, soft_cap: spec.head.soft_cap, scale: spec.head.logit_scale })
    }

    /// The different kinds of RoPE, and which of them each layer uses.
    fn ropes(
        &mut self,
        layers: &[LayerSpec],
        context: usize,
    ) -> Result<(Vec<Frequencies>, Vec<Option<usize>>), EngineError> {
        let mut kinds: Vec<&Rope> = Vec::new();
        let mut place = |rope| {
            kinds.iter().position(|kind| *kind == rope).unwrap_or_else(|| {
                kinds.push(rope);
                kinds.len() - 1
            })
        };
        let uses = layers.iter().map(|layer| layer.attention.rope.as_ref().map(&mut place)).collect();
        // Every shard is given the factors, whether or not its own layers use them.
        let all = [TensorRole::RopeFactors, TensorRole::RopeFactorsLong, TensorRole::RopeFactorsShort];
        let all = all.map(|role| (role, self.tensors.remove(&role)));
        let factors = |rope: &Rope, role: TensorRole| {
            let found = all.iter().find_map(|(known, tensor)| tensor.as_ref().filter(|_| *known == role));
            let (name, matrix) = found.ok_or_else(|| missing(role))?;
            let factors = matrix.vector(self.machine.simd);
            if factors.len() != rope.dims / 2 {
                return Err(shape(name, format!("{} factors instead of {}", factors.len(), rope.dims / 2)));
            }
            Ok(Frequencies::new(rope, &factors))
        };
        let frequencies = kinds.into_iter().map(|rope| match rope.scaling {
            RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Yarn { .. } => Ok(Frequencies::new(rope, &[])),
            RopeScaling::Factors => factors(rope, TensorRole::RopeFactors),
            RopeScaling::LongRope { original } if context > original => factors(rope, TensorRole::RopeFactorsLong),
            RopeScaling::LongRope { .. } => factors(rope, TensorRole::RopeFactorsShort),
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

    fn norm(&mut self, [gain, bias]: [TensorRole; 2], len: usize, spec: NormSpec) -> Result<Norm, EngineError> {
        let bias = match spec.kind {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.vector(bias, len)?),
        };
        Ok(Norm { gain: self.vector(gain, len)?, bias, eps: spec.eps })
    }

    fn vector(&mut self, role: TensorRole, len: usize) -> Result<Vec<f32>, EngineError> {
        self.rows(role, 1, len)
    }

    /// All elements of a small matrix.
    fn rows(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Vec<f32>, EngineError> {
        let (matrix, mut elements) = (self.matrix(role, rows, cols)?, vec![0.0; rows * cols]);
        // Dimensions are held far below 2^32.
        let ids: Vec<u32> = (0..rows as u32).collect();
        matrix.look_up(self.machine.simd, &ids, &mut elements);
        Ok(elements)
    }

    fn matrix(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
        let (name, matrix) = self.tensors.remove(&role).ok_or_else(|| missing(role))?;
        if (matrix.rows, matrix.cols) != (rows, cols) {
            return Err(shape(&name, format!("{}x{} instead of {rows}x{cols}", matrix.rows, matrix.cols)));
        }
        Ok(matrix)
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
        TensorRole::Embedding
        | TensorRole::OutputNorm
        | TensorRole::OutputNormBias
        | TensorRole::Output
        | TensorRole::RopeFactors
        | TensorRole::RopeFactorsLong
        | TensorRole::RopeFactorsShort => format!("{role:?}"),
    };
    EngineError::MissingTensor { tensor }
}

fn shape(tensor: &str, what: String) -> EngineError {
    EngineError::TensorShape { tensor: tensor.into(), what }
}
