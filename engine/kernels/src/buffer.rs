//! The memory of weights: one mapping for what is loaded together, in huge pages where the system has them, in parts that
//! are given back one by one; and giving freed memory back.

#![allow(unsafe_code, reason = "memory mappings, and advice to the system about them")]

use std::{
    num::NonZeroUsize,
    ops::{Deref, Range},
    ptr::NonNull,
    sync::Arc,
};

use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap},
    unistd::{SysconfVar, sysconf},
};

/// The size of a huge page, to which a mapping of at least one is aligned.
const HUGE_PAGE: usize = 2 << 20;
/// The largest page of any system we run on, for those that do not say.
const PAGE: usize = 64 << 10;

/// Zeroed bytes that begin at a page, and whole pages of its own.
pub struct Buffer {
    start: NonNull<u8>,
    /// Bytes asked for.
    len: usize,
    /// Bytes of its pages.
    mapped: usize,
}

// SAFETY: it owns its pages, as a `Vec<u8>` owns its bytes.
unsafe impl Send for Buffer {}
// SAFETY: shared, the bytes are only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeroed bytes, or nothing where the system has no room for them.
    pub fn new(len: usize) -> Option<Self> {
        Self::adjacent(&[len])?.pop()
    }

    /// Zeroed buffers of these lengths, one behind another in one mapping, so that huge pages reach over their borders.
    /// Each gives its pages back when it is dropped.
    pub fn adjacent(lens: &[usize]) -> Option<Vec<Self>> {
        let page = page_bytes();
        let pages = |len: &usize| len.max(&1).checked_next_multiple_of(page);
        let mapped: Vec<usize> = lens.iter().map(pages).collect::<Option<_>>()?;
        let total = mapped.iter().try_fold(0_usize, |total, len| total.checked_add(*len))?;
        if total == 0 {
            return Some(Vec::new());
        }
        let mut start = map(total)?;
        let mut buffers = Vec::with_capacity(lens.len());
        for (&len, mapped) in lens.iter().zip(mapped) {
            buffers.push(Self { start, len, mapped });
            // SAFETY: inside the mapping, or at its end.
            start = unsafe { start.add(mapped) };
        }
        Some(buffers)
    }

    /// The bytes, to be filled before they are shared.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the pages are mapped, zeroed by the system, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are mapped, and zeroed by the system.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: its own pages, which nobody borrows any more.
        unsafe { unmap(self.start, self.mapped) };
    }
}

/// A part of a shared buffer.
#[derive(Clone)]
pub struct Bytes {
    buffer: Arc<Buffer>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes `range` of `buffer`, inside which they lie.
    pub fn new(buffer: Arc<Buffer>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= buffer.len(), "a part lies inside its buffer");
        Self { buffer, range }
    }

    /// A part of them, inside which `range` lies.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.range.len(), "a part lies inside its whole");
        Self::new(Arc::clone(&self.buffer), self.range.start + range.start..self.range.start + range.end)
    }

    /// What tells whether the buffer is still there.
    pub fn buffer(&self) -> std::sync::Weak<Buffer> {
        Arc::downgrade(&self.buffer)
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
pub fn release_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: no memory that is in use is touched.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

fn page_bytes() -> usize {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| bytes.is_power_of_two()).unwrap_or(PAGE)
}

/// `len` bytes, whole pages, of zeroed memory; from a huge page's size on they begin at a huge page.
fn map(len: usize) -> Option<NonNull<u8>> {
    let spare = if len < HUGE_PAGE { 0 } else { HUGE_PAGE };
    let whole = NonZeroUsize::new(len.checked_add(spare)?)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: new memory at an address that the system chooses; nothing else is touched.
    let start = unsafe { mmap_anonymous(None, whole, protection, MapFlags::MAP_PRIVATE) }.ok()?.cast::<u8>();
    let before = if spare == 0 { 0 } else { start.addr().get().wrapping_neg() % HUGE_PAGE };
    // SAFETY: whole pages before and behind the part that is kept, all inside the mapping.
    let kept = unsafe {
        let kept = start.add(before);
        unmap(start, before);
        unmap(kept.add(len), spare - before);
        kept
    };
    if spare > 0 {
        // Before the first touch, which decides how a page is backed.
        advise_huge_pages(kept, len);
    }
    Some(kept)
}

/// Gives pages back; none if `len` is 0.
///
/// # Safety
/// They are mapped, and nothing uses them any more.
unsafe fn unmap(start: NonNull<u8>, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: promised by the caller.
    if let Err(error) = unsafe { munmap(start.cast(), len) } {
        tracing::debug!(%error, "pages of weights stay mapped");
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: whole pages inside the mapping; the advice changes only how they are backed.
    let advised = unsafe { nix::sys::mman::madvise(start.cast(), len, nix::sys::mman::MmapAdvise::MADV_HUGEPAGE) };
    if let Err(error) = advised {
        tracing::debug!(%error, "no huge pages for the weights");
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_start: NonNull<u8>, _len: usize) {}
