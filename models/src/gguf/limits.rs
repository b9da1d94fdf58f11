//! What no header of a file exceeds.

/// Longest header of one file; the largest real ones (262,144 tokens and as many merges) are under 20 MiB.
pub const HEADER_BYTES_MAX: u64 = 256 << 20;
/// Deepest array in an array; real files have none.
pub(super) const NESTING_MAX: usize = 4;
/// Largest `general.alignment`; real files have 32.
pub(super) const ALIGNMENT_MAX: u64 = 1 << 20;
