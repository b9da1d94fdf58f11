//! What a model *is*: GGUF files, families, tokenizers, chat templates, the catalog and `pull`. No arithmetic on activations.

pub mod catalog;
pub mod chat;
pub mod directories;
pub mod family;
pub mod gguf;
pub mod numerics;
pub mod pull;
pub mod spec;
pub mod tensor;
pub mod tokenizer;
pub mod weights;
