//! The sizes in which kernels lay out memory, which whoever counts memory must know too.

/// Positions per page of the KV cache.
pub const PAGE_POSITIONS: usize = 64;
/// Rows of a matrix that are packed together, and elements that a value in the KV cache is filled up to: the lanes of the
/// kernels.
pub const LANES: usize = 16;
/// Activations that are quantised together.
pub const QUANT_BLOCK: usize = 32;
/// Bytes of such a block once it is quantised.
pub const QUANT_BLOCK_BYTES: usize = 48;
