//! What a model *is*: GGUF files, families, tokenizers, chat templates, the catalog and `pull`. No arithmetic on activations.
//!
//! # From a file to a shape
//! A GGUF file begins with a header: keys with values (the metadata), then a name, a shape, a type and a place for every
//! tensor. [`gguf::Gguf`] reads that and nothing more, with a bound on everything, since a file may come from anybody.
//!
//! [`family::spec`] makes a [`spec::ModelSpec`] of it. The metadata name an architecture, and for each one that we know there
//! is a small file with one function, which turns keys into data: so many layers, each with this attention, this
//! feed-forward half, these norms. All that follows from that data, the list of tensors above all, is worked out in one place
//! for all families. Whatever is unknown, missing, of another shape or left over is an error that names it: a model that we
//! would compute wrongly is refused.
//!
//! A `ModelSpec` is all that the rest of the program sees. It is cut by layers: [`spec::ModelSpec::shard`] has the tensors that
//! a worker of some layers needs, [`weights::ModelFile`] reads their bytes, and [`footprint`] says what memory they
//! take on a worker together with everything beside them, for those who plan and those who refuse alike.
//!
//! # From text to ids and back
//! A model reads and writes token ids. [`tokenizer::Tokenizer`] is built from a GGUF's vocabulary: it cuts a text into words
//! by the model's own rules, then joins bytes or characters to the longest tokens that its merges or scores allow.
//! [`tokenizer::Detokenizer`] goes the other way, token by token, and holds back what is not yet a whole character.
//!
//! A conversation becomes text by the model's chat template, a program in Jinja. [`chat::ChatTemplate`] renders it as the
//! Python library that it was written for does, in a sandbox with bounds on time, memory and stack.
//!
//! # From a name to a file
//! [`catalog`] names a few models, [`pull`] finds and downloads them and others, and [`directories`] says where they lie.
//!
//! `examples/layers.rs` prints what a file holds.

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
pub mod span;
pub mod spec;
pub mod terminal;
pub mod tokenizer;
pub mod weights;

pub use qmesh_arithmetic::{grid, tensor};
