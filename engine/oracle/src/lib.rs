//! A shard of a model computed with plain tensor operations: the independent oracle of the engine's own kernels.
//!
//! The engine computes on packed, quantised weights with kernels of its own. Here the same [`ModelSpec`] is read once more
//! and computed as a textbook writes it down: weights are dequantised to f32 when they are opened, each operation is one
//! small file over candle's operations, keys and values are tensors that grow, and any device of candle's serves. Nothing
//! is shared with the engine but the spec and the file, so that a mistake in one of them shows as a difference.
//!
//! - [`OracleShard::open`] reads the tensors of a range of layers. The first layers come with the embedding table, the last
//!   ones with the head.
//! - [`OracleShard::forward`] computes rows of one session: token ids or hidden rows go in, hidden rows or logits come out.
//!   Shards of one model work one behind another, each fed with what the one before it gave.
//! - [`Rounding`] says which of the engine's own roundings the oracle repeats. With none it is the plain f32 result. With
//!   the engine's, what is left of a difference is the order of sums, and bounds can be tight.
//!
//! ```
//! use qmesh_models::weights::ModelFile;
//! use qmesh_oracle::{Device, Input, OracleShard, Output, Rounding};
//!
//! let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny/llama.gguf");
//! let file = ModelFile::open(path)?;
//! let layers = file.spec().layers.len();
//! let mut shard = OracleShard::open(file.spec(), &file, 0..layers, &Device::Cpu, Rounding::NONE)?;
//! let Output::Logits(prompt) = shard.forward(1, Input::Ids(&[5, 6, 7]), 0)? else { panic!("it has the head") };
//! assert_eq!(prompt.len(), 3 * file.spec().vocab, "the logits of every row");
//! let Output::Logits(next) = shard.forward(1, Input::Ids(&[8]), 3)? else { panic!("it has the head") };
//! assert_eq!(next.len(), file.spec().vocab);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It is slow, and takes four bytes for each weight: it is for tests and for verifying, and no shipped program links it.
//!
//! [`ModelSpec`]: qmesh_models::spec::ModelSpec

mod activation;
mod attention;
mod blocks;
mod cache;
mod convolution;
mod decode;
mod error;
mod experts;
mod ffn;
mod gated;
mod gated_delta;
mod head;
mod indexer;
mod latent;
mod layer;
mod layer_input;
mod linear;
mod mask;
mod norm;
mod rope;
mod rounding;
mod shard;
mod state_space;
mod temperature;
mod weights;

pub use candle_core::Device;

pub use self::{
    error::OracleError,
    rounding::{Activations, CacheType, Rounding},
    shard::{Input, OracleShard, Output},
};
