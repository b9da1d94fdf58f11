//! Which arithmetic the workers of a mesh must have: with it the same model gives the same bits on each of them.
//!
//! The engine computes its digest anew at every start, and a coordinator lets in who has this one. A test of the engine
//! holds both to every instruction set of the machine that it runs on.

/// The version of the arithmetic: raised together with [`DIGEST`], whenever a kernel's bits change on purpose.
pub const VERSION: u32 = 5;

/// What the kernels of that version make of fixed inputs.
pub const DIGEST: u64 = 0x348a_f76c_cc14_7cb8;

/// How a worker names its arithmetic, which has this digest.
pub fn named(digest: u64) -> String {
    format!("arithmetic {VERSION}, digest {digest:016x}")
}

/// What every worker must name.
pub fn expected() -> String {
    named(DIGEST)
}
