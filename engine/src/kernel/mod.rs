//! The arithmetic of a shard, in one canonical order that fixes every bit of every result.
//!
//! Invariant: no result depends on how many rows are computed together, on threads, or on the instruction set. Products
//! add their terms serially over K, one lane per output; true reductions use sixteen lanes and one tree; nothing comes
//! from a maths library that differs between machines. `lanes` is the only place with `unsafe`.

pub(crate) mod attend;
pub(crate) mod buffer;
pub(crate) mod columns;
mod float;
mod format;
pub(crate) mod lanes;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod norm;
mod pack;
pub(crate) mod product;
pub(crate) mod quantize;
pub(crate) mod real;
pub(crate) mod rope;
pub(crate) mod team;

/// What computes: an instruction set, and threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) simd: lanes::Simd,
    pub(crate) team: &'a team::Team,
}
