//! Tensors as the kernels take them: read and packed once, and shared by the shards that hold them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    num::NonZeroUsize,
    ops::Range,
    sync::Arc,
};

use qmesh_kernels::{
    Cpu,
    buffer::{Buffer, Bytes},
    lanes::LANES,
    matrix::Matrix,
};
use qmesh_models::{
    spec::{LayerTensor, ModelSpec, TensorRole, TensorSpec},
    tensor::TensorType,
};

use super::shape;
use crate::{backend::TensorFile, error::EngineError};

/// Where a shard's tensors come from.
pub trait TensorSource {
    /// Fills `into` (exactly `tensor.bytes` long) with the tensor's bytes as they are in the file.
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError>;

    /// The very same tensor as another shard of this process holds it: then it is not read.
    fn packed(&self, _tensor: &TensorSpec) -> Option<PackedTensor> {
        None
    }

    /// How many of a layer's experts are in memory at a time, where the others stay in their files; `None` where all are.
    fn experts_in_memory(&self) -> Option<NonZeroUsize> {
        None
    }

    /// A tensor that stays in its file, to be read in pieces as long as the shard lives. What lies there now has been checked.
    fn open(&self, tensor: &TensorSpec) -> Result<Arc<dyn TensorFile>, EngineError> {
        Err(EngineError::Read { tensor: tensor.name.clone(), reason: "it can only be read as a whole".into() })
    }
}

/// A tensor as a loaded shard holds it. Clones share its memory, which lives as long as the last of them.
#[derive(Clone, Debug)]
pub struct PackedTensor(Packed);

/// The tensors of a shard.
pub type PackedTensors = BTreeMap<TensorRole, PackedTensor>;

/// What the kernels take.
#[derive(Clone, Debug)]
pub(super) enum Packed {
    Matrix(Matrix),
    /// Its elements, widened: as a matrix of one row it would take sixteen times its room.
    Vector(Arc<[f32]>),
    /// A matrix that is not in memory.
    Filed(Filed),
}

/// A matrix in its file, of which experts are read as they are needed.
#[derive(Clone, Debug)]
pub(super) struct Filed {
    pub(super) dtype: TensorType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) file: Arc<dyn TensorFile>,
}

impl PackedTensor {
    /// A vector.
    #[cfg(test)]
    pub(crate) fn vector(elements: &[f32]) -> Self {
        Self(Packed::Vector(elements.into()))
    }

    /// What tells whether the memory of a matrix is still there.
    #[cfg(test)]
    pub(crate) fn buffer(&self) -> Option<std::sync::Weak<Buffer>> {
        match &self.0 {
            Packed::Matrix(matrix) => Some(matrix.bytes.buffer()),
            Packed::Vector(_) | Packed::Filed(_) => None,
        }
    }

    pub(super) fn packed(&self) -> &Packed {
        &self.0
    }

    /// Whether it can be what the spec says; that it has the same bytes is for the source to know.
    fn fits(&self, tensor: &TensorSpec) -> bool {
        match &self.0 {
            Packed::Matrix(matrix) => {
                (matrix.dtype, matrix.rows, matrix.cols) == (tensor.dtype, tensor.rows, tensor.cols)
            }
            Packed::Filed(filed) => (filed.dtype, filed.rows, filed.cols) == (tensor.dtype, tensor.rows, tensor.cols),
            Packed::Vector(elements) => (tensor.rows, tensor.cols) == (1, elements.len()),
        }
    }

    /// Whether it is in memory.
    fn is_in_memory(&self) -> bool {
        match &self.0 {
            Packed::Matrix(_) | Packed::Vector(_) => true,
            Packed::Filed(_) => false,
        }
    }
}

/// The shard's tensors: those that the source knows packed as they are, the others read and packed, but for those that are to
/// stay in their files. `progress` is told the bytes read so far.
///
/// All that is read lies in one mapping, so that huge pages reach over the borders of layers; the embedding table, the
/// head and each layer have a part of it that is freed alone, when no shard holds it any more.
pub(super) fn pack(
    cpu: Cpu<'_>,
    spec: &ModelSpec,
    layers: &Range<usize>,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64),
) -> Result<PackedTensors, EngineError> {
    let mut tensors = PackedTensors::new();
    let (mut vectors, mut matrices) = (Vec::new(), BTreeMap::<Part, Vec<&TensorSpec>>::new());
    let (mut filed, mut listed) = (Vec::new(), Listed::default());
    for tensor in spec.tensors.iter().filter(|t| spec.holds(layers, t.role)) {
        listed.once(tensor)?;
        let stays = spec.stays_in_file(tensor.role, source.experts_in_memory());
        let packed = source.packed(tensor).filter(|packed| packed.is_in_memory() != stays);
        match (packed, Part::of(tensor.role)) {
            (Some(packed), _) if packed.fits(tensor) => drop(tensors.insert(tensor.role, packed)),
            (Some(_), _) => return Err(shape(&tensor.name, "what another shard holds is not the same".into())),
            (None, Some(_)) if stays => filed.push(tensor),
            (None, Some(part)) => matrices.entry(part).or_default().push(tensor),
            (None, None) => vectors.push(tensor),
        }
    }
    let mut loaded = 0;
    let mut told = |tensor: &TensorSpec| {
        loaded += tensor.bytes;
        progress(loaded);
    };
    for tensor in vectors {
        tensors.insert(tensor.role, PackedTensor(Packed::Vector(read_vector(cpu, tensor, source)?)));
        told(tensor);
    }
    for tensor in filed {
        let TensorSpec { rows, cols, dtype, .. } = *tensor;
        packed_len(tensor)?;
        let filed = Filed { dtype, rows, cols, file: source.open(tensor)? };
        tensors.insert(tensor.role, PackedTensor(Packed::Filed(filed)));
        told(tensor);
    }
    let parts = matrices.into_values().map(places).collect::<Result<Vec<_>, _>>()?;
    let lens: Vec<usize> = parts.iter().map(|(_, len)| *len).collect();
    let out_of_memory =
        || EngineError::OutOfMemory { needed: lens.iter().map(|len| *len as u64).sum(), tensor: "the shard".into() };
    let buffers = Buffer::adjacent(&lens).ok_or_else(out_of_memory)?;
    for ((places, _), mut buffer) in parts.into_iter().zip(buffers) {
        touch(cpu, buffer.bytes_mut());
        for Place { tensor, packed } in &places {
            read(cpu, tensor, source, &mut buffer.bytes_mut()[packed.clone()])?;
            told(tensor);
        }
        let buffer = Arc::new(buffer);
        tensors.extend(places.into_iter().map(|Place { tensor, packed }| {
            let TensorSpec { role, rows, cols, dtype, .. } = *tensor;
            let bytes = Bytes::new(Arc::clone(&buffer), packed);
            (role, PackedTensor(Packed::Matrix(Matrix { dtype, rows, cols, bytes })))
        }));
    }
    Ok(tensors)
}

/// What is freed together.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Part {
    Embedding,
    LayerInputs,
    Layer(usize),
    Output,
}

impl Part {
    /// Where the matrix of a role belongs; `None` for a vector.
    fn of(role: TensorRole) -> Option<Self> {
        match role {
            TensorRole::Embedding => Some(Self::Embedding),
            TensorRole::LayerEmbeddings | TensorRole::LayerProjection => Some(Self::LayerInputs),
            TensorRole::Output => Some(Self::Output),
            TensorRole::LayerProjectionNorm
            | TensorRole::OutputNorm
            | TensorRole::OutputNormBias
            | TensorRole::RopeFactors
            | TensorRole::RopeFactorsLong
            | TensorRole::RopeFactorsShort => None,
            TensorRole::Layer(layer, tensor) => is_matrix(tensor).then_some(Self::Layer(layer.0)),
        }
    }
}

fn is_matrix(tensor: LayerTensor) -> bool {
    use LayerTensor::{
        Alpha, AlphaDown, AlphaUp, AttnNorm, AttnNormBias, AttnOutput, AttnOutputBias, Beta, BetaAlpha, ChoiceBias,
        ConvolutionBias, ConvolutionTaps, Decay, DeltaQkv, Down, DownBias, ExpertDownBiases, ExpertDowns,
        ExpertGateBiases, ExpertGateUps, ExpertGates, ExpertLatentDown, ExpertLatentUp, ExpertScales, ExpertUpBiases,
        ExpertUps, ExpertsNorm, FfnNorm, FfnNormBias, Gate, GateBias, GroupNorm, HeadDecay, HeadGates, HeadSkip,
        IndexKey, IndexKeyNorm, IndexKeyNormBias, IndexQueries, IndexQueryNorm, IndexWeights, InputGate, InputNorm,
        InputProjection, K, KB, KBias, KNorm, KeyTaps, KvA, KvANorm, KvB, OutputScale, PostAttnNorm, PostExpertsNorm,
        PostFfnNorm, PostGatedNorm, Q, QA, QANorm, QB, QBias, QNorm, QueryTaps, Router, RouterBias, RouterNorm,
        SharedDown, SharedGate, SharedRouter, SharedUp, Sinks, StateGate, StateGateDown, StateGateUp, StateInput,
        StateNorm, StateOutput, TimeStep, TimeStepBias, Up, UpBias, V, VB, VBias, ValueTaps,
    };
    match tensor {
        Q | K | V | QA | QB | KvA | KB | VB | KvB | HeadGates | InputGate | InputProjection | AttnOutput | Gate
        | Up | Down | Router | ExpertGates | ExpertUps | ExpertGateUps | ExpertLatentDown | ExpertLatentUp
        | ExpertDowns | ExpertGateBiases | ExpertUpBiases | ExpertDownBiases | SharedRouter | SharedGate | SharedUp
        | SharedDown | IndexQueries | IndexKey | IndexWeights | DeltaQkv | StateGate | StateGateDown | StateGateUp
        | AlphaDown | AlphaUp | QueryTaps | KeyTaps | ValueTaps | Alpha | Beta | BetaAlpha | ConvolutionTaps
        | StateOutput | StateInput | TimeStep | HeadDecay | HeadSkip | GroupNorm => true,
        AttnNorm | AttnNormBias | QBias | KBias | VBias | QNorm | KNorm | QANorm | KvANorm | Sinks | AttnOutputBias
        | PostAttnNorm | FfnNorm | FfnNormBias | GateBias | UpBias | DownBias | RouterBias | ChoiceBias
        | PostFfnNorm | TimeStepBias | ConvolutionBias | Decay | StateNorm | OutputScale | PostExpertsNorm
        | ExpertsNorm | PostGatedNorm | RouterNorm | ExpertScales | IndexKeyNorm | IndexKeyNormBias
        | IndexQueryNorm | InputNorm => false,
    }
}

/// The roles seen so far.
#[derive(Default)]
struct Listed<'a>(BTreeMap<TensorRole, &'a str>);

impl<'a> Listed<'a> {
    fn once(&mut self, tensor: &'a TensorSpec) -> Result<(), EngineError> {
        match self.0.entry(tensor.role) {
            Entry::Vacant(entry) => {
                entry.insert(&tensor.name);
                Ok(())
            }
            Entry::Occupied(_) => Err(shape(&tensor.name, format!("{:?} is listed twice", tensor.role))),
        }
    }
}

/// Where a matrix lies in its part's buffer.
struct Place<'a> {
    tensor: &'a TensorSpec,
    packed: Range<usize>,
}

/// A place for each matrix of a part, and the bytes that they take together.
fn places(tensors: Vec<&TensorSpec>) -> Result<(Vec<Place<'_>>, usize), EngineError> {
    const LINE: usize = 64;
    let mut total: usize = 0;
    let mut places = Vec::new();
    for tensor in tensors {
        let len = packed_len(tensor)?;
        let start = total.checked_next_multiple_of(LINE).ok_or_else(|| unpackable(tensor))?;
        total = start.checked_add(len).ok_or_else(|| unpackable(tensor))?;
        places.push(Place { tensor, packed: start..total });
    }
    Ok((places, total))
}

/// Bytes that a tensor takes packed, which are those that it has but for the last group of rows.
fn packed_len(tensor: &TensorSpec) -> Result<usize, EngineError> {
    let TensorSpec { rows, cols, dtype, bytes, .. } = *tensor;
    let row = dtype.row_bytes(cols).filter(|row| row.checked_mul(rows).is_some_and(|len| len as u64 == bytes));
    let len = row.and_then(|row| Matrix::packed_len(dtype, rows, row)).filter(|len| *len > 0);
    len.ok_or_else(|| unpackable(tensor))
}

fn unpackable(tensor: &TensorSpec) -> EngineError {
    let TensorSpec { ref name, rows, cols, dtype, bytes, .. } = *tensor;
    shape(name, format!("{bytes} bytes cannot be {rows} rows of {cols} {dtype} elements, or not be packed"))
}

/// Has the system find and clear fresh memory, all threads together: left to the one that reads into it, that would take several
/// times as long as reading.
fn touch(cpu: Cpu<'_>, fresh: &mut [u8]) {
    let chunks = fresh.chunks_mut(TOUCHED_TOGETHER).collect();
    cpu.team.each(chunks, |chunk: &mut [u8]| chunk.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0));
}

/// Some huge pages.
const TOUCHED_TOGETHER: usize = 8 << 20;
/// The smallest page of any system.
const PAGE: usize = 4 << 10;

/// Reads a tensor of checked size into its place and packs it there.
fn read(cpu: Cpu<'_>, tensor: &TensorSpec, source: &dyn TensorSource, place: &mut [u8]) -> Result<(), EngineError> {
    let row_bytes = place.len() / tensor.rows.next_multiple_of(LANES);
    source.read(tensor, &mut place[..row_bytes * tensor.rows])?;
    Matrix::pack(cpu.team, tensor.dtype, row_bytes, place);
    Ok(())
}

/// The elements of a vector, by way of a matrix that is freed at once.
fn read_vector(cpu: Cpu<'_>, tensor: &TensorSpec, source: &dyn TensorSource) -> Result<Arc<[f32]>, EngineError> {
    let TensorSpec { ref name, rows, cols, dtype, .. } = *tensor;
    let len = packed_len(tensor)?;
    if rows != 1 {
        return Err(shape(name, format!("{rows} rows instead of 1")));
    }
    let out_of_memory = || EngineError::OutOfMemory { needed: len as u64, tensor: name.clone() };
    let mut buffer = Buffer::new(len).ok_or_else(out_of_memory)?;
    read(cpu, tensor, source, buffer.bytes_mut())?;
    let matrix = Matrix { dtype, rows, cols, bytes: Bytes::new(Arc::new(buffer), 0..len) };
    Ok(matrix.vector(cpu.simd).into())
}
