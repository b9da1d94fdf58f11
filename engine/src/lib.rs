//! How layers are computed: kernels, the shard with its KV cache, sampling, and the worker that serves a shard to a mesh.
//!
//! # A shard computes steps
//! A [`shard::Shard`] is a range of a model's layers in memory, made from a spec and a [`shard::TensorSource`] that has the
//! weights' bytes. The shard of the first layer has the embedding table and takes token ids; every other one takes the rows
//! that the shard before it gave. The shard of the last layer has the head: it answers with sampled tokens where the others
//! answer with rows.
//!
//! What it computes at a time is a [`step::Step`]: rows of several sequences together, since one pass over the weights serves
//! them all. A sequence has a session on the shard, which holds the keys and values of its positions in pages of 64. A
//! session is opened with room for the most positions that it may come to hold, so that a step never runs out of memory.
//!
//! # Every bit is decided
//! The result of a row follows from the weights and from the ids of its sequence alone. It does not depend on the rows beside
//! it, on how a prompt is cut into steps, on the number of threads, on which vector instructions the CPU has, or on where the
//! model is cut. So a model gives the same text on one machine and on five, and a text goes on unchanged when a machine is
//! lost. The kernels see to that: outputs are never shared between threads, and every sum has one order. What they may
//! assume and must keep is in `docs/ARCHITECTURE.md`, under Exactness.
//!
//! Sampling belongs to it: noise comes from a generator that is keyed by seed, sequence and position, so that it does not
//! matter in which step a token is drawn ([`sample`]).
//!
//! # A worker serves shards
//! [`worker::run`] joins a mesh with a ticket and does what the coordinator says: fetches tensors by the hash of their
//! content, loads a shard, links to its neighbours in the pipeline, and computes the frames that come. Its heart is a state
//! machine without IO. The thread that computes owns shards and caches, and tasks of the network only move frames.
//!
//! `examples/generate.rs` computes a few tokens in one process, without a network.

mod attention;
pub mod backend;
mod batch;
mod block;
mod blocks;
mod cache;
pub mod error;
mod ffn;
mod gated_delta;
mod indexer;
mod latent;
mod layer_input;
mod linear;
mod load;
pub mod measure;
mod noise;
mod numerics;
mod ops;
mod recurrence;
pub mod sample;
pub mod shard;
mod state_space;
mod states;
pub mod step;
mod temperature;
pub mod worker;

#[cfg(test)]
#[path = "../kernels/tests/random.rs"]
mod random;
