//! What can go wrong in an oracle: each variant names the tensor, session or row at fault.

use std::ops::Range;

use qmesh_models::{spec::TensorRole, weights::WeightsError};

/// Why a shard could not be opened, or rows not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// The layers are not a non-empty range of the model's.
    #[error("layers {}..{} are no part of a model of {count} layers", range.start, range.end)]
    Layers {
        /// The layers asked for.
        range: Range<usize>,
        /// Layers of the model.
        count: usize,
    },
    /// Query heads cannot share the key/value heads evenly.
    #[error("{heads} heads cannot share {kv_heads} key/value heads evenly")]
    Heads {
        /// Query heads.
        heads: usize,
        /// Key/value heads.
        kv_heads: usize,
    },
    /// The shard needs a tensor that the spec does not list.
    #[error("tensor {role:?} is missing from the spec")]
    MissingTensor {
        /// What it is for.
        role: TensorRole,
    },
    /// A tensor has not as many rows and columns as its role asks for.
    #[error("tensor {tensor} is {found:?} instead of {expected:?} (rows, columns)")]
    Shape {
        /// Its name.
        tensor: String,
        /// Rows and columns that it has.
        found: (usize, usize),
        /// Rows and columns that it should have.
        expected: (usize, usize),
    },
    /// A tensor's length in bytes is not that of its rows.
    #[error("tensor {tensor} cannot have {bytes} bytes")]
    Length {
        /// Its name.
        tensor: String,
        /// The length that the spec says.
        bytes: u64,
    },
    /// A tensor's bytes cannot be read.
    #[error("tensor {tensor} cannot be read: {source}")]
    Read {
        /// Its name.
        tensor: String,
        /// What the file says.
        source: WeightsError,
    },
    /// Token ids for a shard that does not embed, or hidden rows for one that does.
    #[error("the shard takes {}", if *embeds { "token ids, not hidden rows" } else { "hidden rows, not token ids" })]
    Input {
        /// Whether the shard embeds.
        embeds: bool,
    },
    /// The hidden elements are not whole rows, or there is no row at all.
    #[error("{elements} elements are no rows of {width}")]
    Rows {
        /// Elements, or ids, that came.
        elements: usize,
        /// Elements of a row.
        width: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    OutsideVocabulary {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// The session holds fewer positions than the rows build on.
    #[error("session {session} holds {held} positions, and rows came for position {position}")]
    Gap {
        /// The session.
        session: u64,
        /// Positions that it holds.
        held: usize,
        /// Position of the first row.
        position: usize,
    },
    /// candle refused an operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
