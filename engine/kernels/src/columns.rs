//! A row-major matrix cut into ranges of columns, which different threads may write at the same time.

#![allow(unsafe_code, reason = "parts that are disjoint, but not slices")]

use std::marker::PhantomData;

/// Some columns of all rows of a matrix.
pub struct Columns<'a, T> {
    /// First of these columns in row 0.
    start: *mut T,
    width: usize,
    /// Elements from one row to the next.
    stride: usize,
    rows: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it is an exclusive borrow of its elements, as `&mut [T]` is.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<'a, T> Columns<'a, T> {
    /// Cuts `matrix`, whose rows are as long as the sum of `widths`, into parts of these widths.
    pub fn split(matrix: &'a mut [T], widths: &[usize]) -> Vec<Self> {
        let stride: usize = widths.iter().sum();
        assert!(stride > 0 && matrix.len().is_multiple_of(stride), "whole rows");
        let rows = matrix.len() / stride;
        let mut first = 0;
        let part = |width: &usize| {
            let start = matrix.as_mut_ptr().wrapping_add(first);
            first += width;
            Self { start, width: *width, stride, rows, matrix: PhantomData }
        };
        widths.iter().map(part).collect()
    }

    /// These columns of row `row`.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `split` gives each column of the borrowed matrix to one part only; the row lies inside it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}
