//! What can be wrong with a tokenizer or with a text for it.

use thiserror::Error;

use crate::gguf::KeyError;

/// What can be wrong with a tokenizer or with a text for it.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TokenizerError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("tokenizer.ggml.model {found:?} is not supported; known: gpt2, llama, gemma4")]
    Model { found: String },
    #[error("tokenizer.ggml.pre is missing; name a pre-tokenizer to use all the same, one of: {known}")]
    PretokenizerMissing { known: String },
    #[error("tokenizer.ggml.pre {found:?} is not known; name another to use all the same, one of: {known}")]
    Pretokenizer { found: String, known: String },
    #[error("tokenizer.ggml.tokens has {tokens} tokens, needs 1 to 2^32 - 1")]
    Size { tokens: usize },
    #[error("tokenizer.ggml.{key} has {found} entries for {tokens} tokens")]
    Lengths { key: &'static str, found: usize, tokens: usize },
    #[error("tokenizer.ggml.scores[{index}] is not a number")]
    Score { index: usize },
    #[error("tokenizer.ggml.token_type[{index}] is {found}, needs 0 to 6")]
    TokenType { index: usize, found: i32 },
    #[error(
        "tokenizer.ggml.{name}_token_id is {id}, but there are {tokens} tokens, and tokenizer.ggml.add_{name}_token is true"
    )]
    Id { name: &'static str, id: u32, tokens: usize },
    #[error("tokenizer.ggml.add_{name}_token is true, but tokenizer.ggml.{name}_token_id is missing")]
    Affix { name: &'static str },
    #[error("tokenizer.ggml.merges[{index}] {text:?} is not two parts with a space between them")]
    Merge { index: u32, text: String },
    #[error("tokenizer.ggml.merges is missing or empty, a tokenizer of this kind needs it")]
    MergesMissing,
    #[error("cannot search for the special tokens: {error}")]
    Specials { error: String },
    #[error("text is too hard for the pre-tokenizer {name:?}: {error}; shorten its runs of white space")]
    Split { name: &'static str, error: Box<fancy_regex::Error> },
}
