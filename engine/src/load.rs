//! From a spec and a source of tensors to the parts of a shard. The spec comes from outside: nothing in it is trusted.

mod check;
mod experts;
mod layer;
mod recurrence;
mod tensors;
mod turned;

use std::{collections::BTreeMap, num::NonZeroUsize, ops::Range, sync::Arc};

use qmesh_kernels::{Cpu, matrix::Matrix, rope::Frequencies};
use qmesh_models::spec::{
    HeadMatrix, LayerIndex, LayerInputs, ModelSpec, NormKind, NormSpec, Rope, RopeScaling, TensorRole,
};

pub use self::tensors::{PackedTensor, PackedTensors, TensorSource};
use self::{
    layer::{LayerRopes, LayerWeights},
    tensors::{Filed, Packed},
};
use crate::{
    block::Block,
    error::EngineError,
    layer_input::LayerInputMaker,
    linear::{Linear, Norm},
};

/// What a shard computes with.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The table that stage 0 embeds with.
    pub(crate) embedding: Option<Arc<Linear>>,
    /// What makes rows for the layers there, where they take some in.
    pub(crate) layer_inputs: Option<LayerInputMaker>,
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

/// Reads and packs what no other shard holds, and assembles the shard of `layers`.
pub(crate) fn load(
    cpu: Cpu<'_>,
    spec: &ModelSpec,
    layers: &Range<usize>,
    source: &dyn TensorSource,
    progress: &mut dyn FnMut(u64),
) -> Result<(Parts, PackedTensors), EngineError> {
    check::check(spec, layers)?;
    let packed = tensors::pack(cpu, spec, layers, source, progress)?;
    let own = spec.tensors.iter().filter(|t| packed.contains_key(&t.role));
    let no_bias = vec![0.0; spec.hidden].into();
    let unused = own.map(|t| (t.role, &*t.name)).collect();
    let in_memory = source.experts_in_memory();
    let mut weights = Weights { cpu, packed: &packed, no_bias, in_memory, unused };
    let parts = weights.parts(spec, layers)?;
    let left_over = weights.unused.into_values().next();
    match left_over {
        Some(tensor) => Err(EngineError::LeftoverTensor { tensor: tensor.into() }),
        None => Ok((parts, packed)),
    }
}

/// The shard's tensors, and which of them no part has taken yet.
struct Weights<'a> {
    cpu: Cpu<'a>,
    packed: &'a PackedTensors,
    /// Zeros, as many as the hidden state has elements.
    no_bias: Arc<[f32]>,
    /// How many of a layer's experts are in memory at a time, where not all are.
    in_memory: Option<NonZeroUsize>,
    /// Their names.
    unused: BTreeMap<TensorRole, &'a str>,
}

impl<'a> Weights<'a> {
    fn parts(&mut self, spec: &ModelSpec, layers: &Range<usize>) -> Result<Parts, EngineError> {
        let (first, last) = (layers.start == 0, layers.end == spec.layers.len());
        let tied = spec.head.matrix == HeadMatrix::Tied;
        let table = (first || (last && tied))
            .then(|| self.linear(TensorRole::Embedding, None, spec.vocab, spec.hidden).map(Arc::new))
            .transpose()?;
        let layer_inputs =
            spec.layer_inputs.filter(|_| first).map(|inputs| self.layer_inputs(spec, inputs)).transpose()?;
        let head = last.then(|| self.head(spec, table.clone().filter(|_| tied))).transpose()?;
        let (ropes, uses) = self.ropes(spec, layers)?;
        let blocks = layers.clone().zip(uses).enumerate();
        let blocks = blocks.map(|(place, (layer, ropes))| {
            let mut weights = LayerWeights { weights: self, layer: LayerIndex(layer), hidden: spec.hidden };
            let input = spec.layer_inputs.map(|inputs| weights.input(inputs, place)).transpose()?;
            Ok(Block { input, ..weights.block(&spec.layers[layer], place, ropes)? })
        });
        let blocks = blocks.collect::<Result<_, EngineError>>()?;
        Ok(Parts { blocks, embedding: table.filter(|_| first), layer_inputs, ropes, head })
    }

    /// What makes rows for all layers.
    fn layer_inputs(&mut self, spec: &ModelSpec, inputs: LayerInputs) -> Result<LayerInputMaker, EngineError> {
        let all = spec.layers.len() * inputs.width;
        let gain = self.vector(TensorRole::LayerProjectionNorm, inputs.width)?;
        Ok(LayerInputMaker {
            table: self.linear(TensorRole::LayerEmbeddings, None, spec.vocab, all)?,
            projection: self.linear(TensorRole::LayerProjection, None, all, spec.hidden)?,
            norm: Norm { gain, bias: None, eps: inputs.eps },
        })
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
        spec: &ModelSpec,
        layers: &Range<usize>,
    ) -> Result<(Vec<Frequencies>, Vec<LayerRopes>), EngineError> {
        let context = spec.context;
        let mut kinds: Vec<&Rope> = Vec::new();
        let mut place = |rope| {
            kinds.iter().position(|kind| *kind == rope).unwrap_or_else(|| {
                kinds.push(rope);
                kinds.len() - 1
            })
        };
        let uses = spec.layers[layers.clone()].iter().map(|layer| LayerRopes {
            own: layer.rope().map(&mut place),
            of_indexer: layer.index_rope().map(&mut place),
        });
        let uses = uses.collect();
        // Every shard is given the factors, whether or not its own layers use them.
        let all = [TensorRole::RopeFactors, TensorRole::RopeFactorsLong, TensorRole::RopeFactorsShort];
        let all = all.map(|role| (role, self.unused.remove(&role)));
        let factors = |rope: &Rope, role: TensorRole| -> Result<_, EngineError> {
            let name = all.iter().find_map(|(known, name)| name.filter(|_| *known == role));
            let name = name.ok_or_else(|| missing(role))?;
            Ok(Frequencies::new(rope, beginning(self.packed, role, name, rope.dims / 2)?))
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
            // A layer's norms are as wide as its hidden state.
            NormKind::LayerUnbiased => Some(Arc::clone(&self.no_bias)),
        };
        Ok(Norm { gain: self.vector(gain, len)?, bias, eps: spec.eps })
    }

    fn vector(&mut self, role: TensorRole, len: usize) -> Result<Arc<[f32]>, EngineError> {
        let name = self.take(role)?;
        vector(self.packed, role, name, len)
    }

    /// All elements of a small matrix.
    fn rows(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Vec<f32>, EngineError> {
        let (matrix, mut elements) = (self.matrix(role, rows, cols)?, vec![0.0; rows * cols]);
        // Dimensions are held far below 2^32.
        let ids: Vec<u32> = (0..rows as u32).collect();
        matrix.look_up(self.cpu.simd, &ids, &mut elements);
        Ok(elements)
    }

    fn matrix(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Matrix, EngineError> {
        let name = self.take(role)?;
        match self.packed.get(&role).map(PackedTensor::packed) {
            Some(Packed::Matrix(matrix)) if (matrix.rows, matrix.cols) == (rows, cols) => Ok(matrix.clone()),
            Some(Packed::Matrix(matrix)) => {
                Err(shape(name, format!("{}x{} instead of {rows}x{cols}", matrix.rows, matrix.cols)))
            }
            Some(Packed::Vector(elements)) => {
                Err(shape(name, format!("a vector of {} instead of {rows}x{cols}", elements.len())))
            }
            Some(Packed::Filed(_)) => Err(shape(name, "it stays in its file, which only experts can".into())),
            None => Err(missing(role)),
        }
    }

    /// A matrix that stays in its file; `None` for one that is in memory.
    fn filed(&mut self, role: TensorRole, rows: usize, cols: usize) -> Result<Option<Filed>, EngineError> {
        let Some(Packed::Filed(filed)) = self.packed.get(&role).map(PackedTensor::packed) else { return Ok(None) };
        let name = self.take(role)?;
        if (filed.rows, filed.cols) == (rows, cols) {
            return Ok(Some(filed.clone()));
        }
        Err(shape(name, format!("{}x{} instead of {rows}x{cols}", filed.rows, filed.cols)))
    }

    /// Notes that a part uses the tensor; its name.
    fn take(&mut self, role: TensorRole) -> Result<&'a str, EngineError> {
        self.unused.remove(&role).ok_or_else(|| missing(role))
    }
}

fn vector(packed: &PackedTensors, role: TensorRole, name: &str, len: usize) -> Result<Arc<[f32]>, EngineError> {
    match packed.get(&role).map(PackedTensor::packed) {
        Some(Packed::Vector(elements)) if elements.len() == len => Ok(Arc::clone(elements)),
        Some(Packed::Vector(elements)) => Err(shape(name, format!("{} elements instead of {len}", elements.len()))),
        Some(Packed::Matrix(Matrix { rows, cols, .. }) | Packed::Filed(Filed { rows, cols, .. })) => {
            Err(shape(name, format!("{rows}x{cols} instead of {len} elements")))
        }
        None => Err(missing(role)),
    }
}

/// The first elements of a vector, of which it may have more.
fn beginning<'a>(
    packed: &'a PackedTensors,
    role: TensorRole,
    name: &str,
    len: usize,
) -> Result<&'a [f32], EngineError> {
    match packed.get(&role).map(PackedTensor::packed) {
        Some(Packed::Vector(elements)) => {
            elements.get(..len).ok_or_else(|| shape(name, format!("{} elements, fewer than {len}", elements.len())))
        }
        Some(Packed::Matrix(Matrix { rows, cols, .. }) | Packed::Filed(Filed { rows, cols, .. })) => {
            Err(shape(name, format!("{rows}x{cols} instead of {len} elements")))
        }
        None => Err(missing(role)),
    }
}

fn missing(role: TensorRole) -> EngineError {
    let tensor = match role {
        TensorRole::Layer(layer, tensor) => format!("{tensor:?} of layer {layer}"),
        TensorRole::Embedding
        | TensorRole::LayerEmbeddings
        | TensorRole::LayerProjection
        | TensorRole::LayerProjectionNorm
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
