//! Why a model cannot be used.

use thiserror::Error;

use crate::{
    gguf::{GgufError, KeyError},
    weights::error::WeightsError,
};

/// Why a model cannot be used; each a line that names the key or tensor.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ModelError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("architecture {found:?} is not supported; supported: {known}")]
    Family { found: String, known: String },
    #[error("the file holds no tensors, only a vocabulary; name the file with the weights")]
    VocabularyOnly,
    #[error("key {key:?} is {found}, expected {allowed}")]
    Range { key: String, found: String, allowed: String },
    #[error("key {key:?} is {found}, which is not supported; supported: {supported}")]
    Unsupported { key: String, found: String, supported: String },
    #[error("missing tensors ({}): {}", missing.len(), first(missing))]
    TensorsMissing { missing: Vec<String> },
    #[error("left-over tensors ({}), which this architecture does not use: {}", left_over.len(), first(left_over))]
    TensorsLeftOver { left_over: Vec<String> },
    #[error("tensor {tensor:?} has the shape {found:?}, expected {expected:?}")]
    Shape { tensor: String, expected: Vec<u64>, found: Vec<u64> },
    #[error("tensor {tensor:?} has the type {found}, which is not supported; supported: {supported}")]
    TensorType { tensor: String, found: String, supported: String },
    #[error("{tokens} tokens in the vocabulary, {rows} rows in tensor \"token_embd.weight\"")]
    Vocabulary { tokens: usize, rows: usize },
}

/// The first few names, so that the error stays a line.
fn first(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
    let rest = names.len().saturating_sub(SHOWN);
    shown.join(", ") + &if rest > 0 { format!(" and {rest} more") } else { String::new() }
}
