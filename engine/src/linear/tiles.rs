//! The memory that outputs are computed in.

use qmesh_kernels::lanes::LANES;

/// Gives `work` so many tiles, for as long as it takes: between products their memory is there for other uses, as the plan counts it.
pub(super) fn with_tiles<R>(count: usize, work: impl FnOnce(&mut [[f32; LANES]]) -> R) -> R {
    work(&mut vec![[0.0; LANES]; count])
}
