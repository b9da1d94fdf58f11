//! The tensors of a shard, read by what they are for.

use candle_core::{Device, Tensor};
use qmesh_models::{
    spec::{Bias, LayerIndex, LayerTensor, ModelSpec, TensorRole, TensorSpec},
    weights::ModelFile,
};

use crate::{
    decode::decode,
    error::OracleError,
    rounding::{Activations, Rounding},
};

/// Where a shard's tensors come from, and what they become.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) file: &'a ModelFile,
    pub(crate) device: &'a Device,
    pub(crate) rounding: Rounding,
}

impl Weights<'_> {
    /// (len) of f32.
    pub(crate) fn vector(&self, role: TensorRole, len: usize) -> Result<Tensor, OracleError> {
        Ok(self.matrix(role, 1, len)?.flatten_all()?)
    }

    /// Elements of each row.
    pub(crate) fn cols(&self, role: TensorRole) -> Result<usize, OracleError> {
        Ok(self.tensor(role)?.cols)
    }

    /// (rows, cols) of f32.
    pub(crate) fn matrix(&self, role: TensorRole, rows: usize, cols: usize) -> Result<Tensor, OracleError> {
        let tensor = self.tensor(role)?;
        let (name, found, expected) = (&tensor.name, (tensor.rows, tensor.cols), (rows, cols));
        if found != expected {
            return Err(OracleError::Shape { tensor: name.clone(), found, expected });
        }
        let len = tensor.dtype.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        let len = len.filter(|len| *len as u64 == tensor.bytes);
        let len = len.ok_or_else(|| OracleError::Length { tensor: name.clone(), bytes: tensor.bytes })?;
        // candle takes blocks only where they are aligned for their type.
        let mut buffer = vec![0; len + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        let bytes = &mut buffer[start..start + len];
        let read = self.file.read_range(tensor.part, tensor.offset, bytes);
        read.map_err(|source| OracleError::Read { tensor: name.clone(), source })?;
        Ok(decode(tensor.dtype, bytes, (rows, cols), self.device)?)
    }

    /// Into how many int8 terms the input of a product with this tensor is rounded, if at all.
    pub(crate) fn input_terms(&self, role: TensorRole) -> Result<Option<usize>, OracleError> {
        let quantised = self.tensor(role)?.dtype.block_len() > 1;
        Ok(match self.rounding.activations {
            Activations::Quantised8 if quantised => Some(1),
            Activations::Quantised8 | Activations::Exact => None,
        })
    }

    fn tensor(&self, role: TensorRole) -> Result<&TensorSpec, OracleError> {
        let found = self.spec.tensors.iter().find(|tensor| tensor.role == role);
        found.ok_or(OracleError::MissingTensor { role })
    }
}

/// The role of a layer's tensor.
pub(crate) fn of_layer(layer: LayerIndex, tensor: LayerTensor) -> TensorRole {
    TensorRole::Layer(layer, tensor)
}

/// The role of a layer's bias where there is one.
pub(crate) fn bias_of(layer: LayerIndex, bias: Bias, tensor: LayerTensor) -> Option<TensorRole> {
    match bias {
        Bias::None => None,
        Bias::Present => Some(of_layer(layer, tensor)),
    }
}

/// Of the most aligned block, in bytes.
const ALIGNMENT: usize = 8;
