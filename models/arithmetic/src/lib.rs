//! The words in which a model's arithmetic is described: how tensors are stored, what the operations of a layer may be,
//! and in which sizes memory is laid out.
//!
//! It is what `qmesh-models`, which reads these from a file, and `qmesh-kernels`, which computes them, must agree on, and
//! nothing else: neither needs the other to be built.

pub mod grid;
pub mod layout;
mod operation;
pub mod tensor;

pub use operation::{Activation, Rope, RopePairing, RopeScaling, Window};
