//! How layers are computed: kernels, the shard with its KV cache, sampling, and the worker that serves a shard to a mesh.
mod attention;
pub mod backend;
mod block;
mod cache;
pub mod error;
mod ffn;
mod linear;
mod load;
mod noise;
mod numerics;
mod ops;
pub mod sample;
pub mod shard;
pub mod step;
pub mod worker;

#[cfg(test)]
#[path = "../kernels/tests/random.rs"]
mod random;
