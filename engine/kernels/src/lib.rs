//! The arithmetic of a shard, in one canonical order that fixes every bit of every result.
//!
//! Invariant: no result depends on how many rows are computed together, on threads, or on the instruction set. Products
//! add their terms serially over K, one lane per output; true reductions use sixteen lanes and one tree; nothing comes
//! from a maths library that differs between machines.
//!
//! A kernel is a struct that borrows its operands, and its `run` carries it out on an instruction set. It is written once,
//! over [`lanes::Lanes`], and compiled in this crate for every tier; whoever uses it compiles none of it again. `unsafe`
//! is in `lanes` (vector instructions) and `buffer` (mappings).

pub mod attend;
pub mod buffer;
pub mod columns;
pub mod convolution;
pub mod delta;
mod error;
mod float;
mod format;
pub mod index;
pub mod lanes;
pub mod math;
pub mod matrix;
pub mod norm;
mod pack;
mod panel;
pub mod product;
pub mod quantize;
pub mod real;
pub mod rope;

use qmesh_team::Team;

pub use self::error::KernelError;

/// What computes: an instruction set, and threads.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<'a> {
    /// The instruction set.
    pub simd: lanes::Simd,
    /// The threads.
    pub team: &'a Team,
}
