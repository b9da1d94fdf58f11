//! The float formats of GGUF: how sixteen rows become a panel of f32 columns.

use std::array::from_fn;

use super::lanes::{LANES, Lanes};

/// A float format.
pub(super) trait Float {
    /// Bytes per element.
    const BYTES: usize;

    /// Widens sixteen elements.
    fn widen<L: Lanes>(l: L, elements: &[u8]) -> L::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Float for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    fn widen<L: Lanes>(l: L, elements: &[u8]) -> L::F {
        l.of_bits(l.load_bits(elements.first_chunk().expect("sixteen elements")))
    }
}

impl Float for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn widen<L: Lanes>(l: L, elements: &[u8]) -> L::F {
        l.load_half(&shorts(elements))
    }
}

impl Float for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    fn widen<L: Lanes>(l: L, elements: &[u8]) -> L::F {
        l.load(&shorts(elements).map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
}

#[inline(always)]
fn shorts(elements: &[u8]) -> [u16; LANES] {
    let pairs = elements.as_chunks().0;
    from_fn(|i| u16::from_le_bytes(pairs[i]))
}

/// Sixteen rows × up to 64 values of K, widened: lane = row.
pub(super) struct FloatPanel {
    pub(super) columns: [[f32; LANES]; Self::LEN],
}

impl FloatPanel {
    /// Columns that it holds.
    pub(super) const LEN: usize = 64;

    pub(super) fn new() -> Self {
        Self { columns: [[0.0; LANES]; _] }
    }

    /// Fills the first `len` columns from column `start` of the rows.
    #[inline(always)]
    pub(super) fn fill<L: Lanes, F: Float>(&mut self, l: L, rows: [&[u8]; LANES], start: usize, len: usize) {
        for at in (0..len).step_by(LANES) {
            let mut widened = [[0; 64]; LANES];
            for (row, widened) in rows.iter().zip(&mut widened) {
                let elements = &row[(start + at) * F::BYTES..];
                let mut padded = [0; 64];
                let values = if len - at < LANES {
                    padded[..elements.len()].copy_from_slice(elements);
                    F::widen(l, &padded)
                } else {
                    F::widen(l, &elements[..LANES * F::BYTES])
                };
                l.store_bits(l.to_bits(values), widened);
            }
            for part in 0..4 {
                let pieces = from_fn(|i| widened[i][16 * part..].first_chunk().expect("four parts of sixteen bytes"));
                for (i, column) in l.interleave(pieces).into_iter().enumerate() {
                    l.store(l.of_bits(column), &mut self.columns[at + 4 * part + i]);
                }
            }
        }
    }
}
