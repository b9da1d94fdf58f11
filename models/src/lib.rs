//! What a model *is*: GGUF files, families, tokenizers, chat templates, the catalog and `pull`. No arithmetic on activations.

pub mod bytes;
pub mod catalog;
pub mod chat;
pub mod directories;
pub mod family;
pub mod files;
pub mod footprint;
pub mod gguf;
pub mod numerics;
pub mod pull;
pub mod spec;
pub mod terminal;
pub mod tokenizer;
pub mod weights;

pub use qmesh_arithmetic::tensor;
