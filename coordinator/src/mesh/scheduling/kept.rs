//! What ended sequences leave on the stages for others.

/// The beginning of a sequence that has ended, for others to begin with.
#[derive(Debug)]
pub(super) struct Kept {
    /// One per position: whole pages.
    pub(super) ids: Vec<u32>,
    /// When it was last of use; the least recent goes first.
    pub(super) turn: u64,
}

/// Beginnings that are kept at a time.
pub(super) const KEPT_MOST: usize = 256;
