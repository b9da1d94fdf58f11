//! The memory of a shard's weights: one allocation, in huge pages where the system has them; and giving memory back.

#![allow(unsafe_code, reason = "aligned memory, and advice to the system about it")]

use std::{
    alloc::{Layout, alloc, dealloc},
    ops::{Deref, Range},
    ptr::NonNull,
    sync::Arc,
};

/// The size of a huge page, to which memory of at least one is aligned.
const HUGE_PAGE: usize = 2 << 20;
/// What less memory is aligned to.
const LINE: usize = 64;

/// Zeroed bytes that begin at a cache line, or at a huge page.
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
        let align = if len < HUGE_PAGE { LINE } else { HUGE_PAGE };
        let layout = Layout::from_size_align(len.max(1), align).ok()?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if align == HUGE_PAGE {
            // Before the first touch, which decides how a page is backed.
            advise_huge_pages(start, layout.size());
        }
        // SAFETY: the allocation is as long as its layout.
        unsafe { start.write_bytes(0, layout.size()) };
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

    /// A part of them, inside which `range` lies.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.range.len(), "a part lies inside its whole");
        Self::new(Arc::clone(&self.buffer), self.range.start + range.start..self.range.start + range.end)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Gives the system back what the allocator keeps of memory that was freed. Fetching and packing take other sizes than
/// steps do, so that steps would have their memory beside it.
pub(crate) fn release_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no memory that is in use is touched.
    unsafe {
        nix::libc::malloc_trim(0);
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
