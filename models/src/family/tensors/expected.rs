//! Tensors that a model needs, against those that its file has.

use std::{collections::HashSet, ops::Range};

use super::super::ModelError;
use crate::{
    gguf::{Gguf, TensorEntry},
    spec::{TensorRole, TensorSpec},
    tensor::TensorType,
};

/// A tensor that the model needs: its rows, all of `cols` elements, serve one role or, where it is fused, several.
pub(super) struct Expected {
    pub(super) name: String,
    pub(super) cols: usize,
    pub(super) pieces: Vec<(TensorRole, usize)>,
    /// How many matrices the rows make up, one below the other.
    pub(super) stacked: usize,
}

impl Expected {
    pub(super) fn one(name: impl Into<String>, role: TensorRole, rows: usize, cols: usize) -> Self {
        Self { name: name.into(), cols, pieces: vec![(role, rows)], stacked: 1 }
    }

    pub(super) fn rows(&self) -> usize {
        self.pieces.iter().map(|(_, rows)| rows).sum()
    }

    /// One spec per piece, where the file's tensor is as it should be.
    fn specs(&self, entry: &TensorEntry) -> Result<Vec<TensorSpec>, ModelError> {
        let axes = |ne: &[u64]| ne.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
        let mut expected = vec![self.cols as u64, (self.rows() / self.stacked) as u64, self.stacked as u64];
        expected.truncate(axes(&expected));
        if entry.ne[..axes(&entry.ne)] != expected {
            return Err(ModelError::Shape { tensor: self.name.clone(), expected, found: entry.ne.clone() });
        }
        let unsupported = || ModelError::TensorType {
            tensor: self.name.clone(),
            found: entry.kind.to_string(),
            supported: TensorType::ALL.map(|t| t.to_string()).join(", "),
        };
        let dtype = entry.kind.tensor_type().ok_or_else(unsupported)?;
        let row_bytes = dtype.row_bytes(self.cols).ok_or_else(unsupported)? as u64;
        let mut offset = entry.offset;
        let spec = |&(role, rows): &(TensorRole, usize)| {
            let bytes = rows as u64 * row_bytes;
            let start = offset;
            offset += bytes;
            TensorSpec {
                role,
                name: self.name.clone(),
                rows,
                cols: self.cols,
                dtype,
                part: entry.part,
                offset: start,
                bytes,
            }
        };
        Ok(self.pieces.iter().map(spec).collect())
    }
}

/// The tensors that are expected, where the file has these and no others but the unused ones and those of layers that draft.
pub(super) fn resolve(
    gguf: &Gguf,
    expected: &[Expected],
    unused: &HashSet<String>,
    drafts: Range<usize>,
) -> Result<Vec<TensorSpec>, ModelError> {
    let (mut tensors, mut missing) = (Vec::new(), Vec::new());
    for wanted in expected {
        match gguf.tensor(&wanted.name) {
            Some(entry) => tensors.extend(wanted.specs(entry)?),
            None => missing.push(wanted.name.clone()),
        }
    }
    if !missing.is_empty() {
        return Err(ModelError::TensorsMissing { missing });
    }
    let wanted: HashSet<_> =
        expected.iter().map(|e| e.name.as_str()).chain(unused.iter().map(String::as_str)).collect();
    let names = gguf.tensors().iter().map(|t| &t.name);
    let of_draft = |name: &str| layer_of(name).is_some_and(|layer| drafts.contains(&layer));
    let left_over: Vec<_> = names.filter(|name| !wanted.contains(name.as_str()) && !of_draft(name)).cloned().collect();
    if !left_over.is_empty() {
        return Err(ModelError::TensorsLeftOver { left_over });
    }
    tensors.sort_by_key(|t| (t.part, t.offset));
    Ok(tensors)
}

/// The layer that a tensor's name says.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}
