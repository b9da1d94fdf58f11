//! The memory of a shard's weights: one allocation, in huge pages where the system has them.

#![allow(unsafe_code, reason = "aligned memory, and advice to the system about it")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    ops::{Deref, Range},
    ptr::NonNull,
    sync::Arc,
};

/// The size of a huge page, to which the memory is aligned.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed bytes that begin at a multiple of [`HUGE_PAGE`].
pub(crate) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its bytes, as a `Vec<u8>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared, the bytes are only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeroed bytes, or nothing where the system has no room for them.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.max(1), HUGE_PAGE).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        advise_huge_pages(start, layout.size());
        Some(Self { start, layout })
    }

    /// The bytes, to be filled before they are shared.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the allocation is as long as its layout, initialised, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation is as long as its layout, and initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A part of a shared buffer.
#[derive(Clone)]
pub(crate) struct Bytes {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of `buffer`, inside which they lie.
    pub(crate) fn new(buffer: Arc<Buffer>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "a part lies inside its buffer");
        Self { buffer, range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: whole pages inside the allocation; the advice changes only how they are backed.
    let advised = unsafe { nix::sys::mman::madvise(start.cast(), len, nix::sys::mman::MmapAdvise::MADV_HUGEPAGE) };
    if let Err(error) = advised {
        tracing::debug!(%error, "no huge pages for the weights");
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: NonNull<u8>, _len: usize) {}
