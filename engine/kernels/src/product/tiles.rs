//! Tiles of rows by the outputs of two panels: what many rows spend their time in.

use std::{array::from_fn, ops::Range};

use crate::{
    lanes::{Kernel, LANES, Lanes},
    panel::Panel,
    quantize::QuantBlock,
};

/// Adds the panels' terms to all rows of two groups, or begins their sums with the first part of the rows. What it does
/// depends on a format's scales, minima and highest bit, but no further on the format, so that several share it.
pub(super) struct AddPanels<'a, const SCALES: usize, const MINIMA: bool, const WIDE: bool> {
    /// A group each.
    pub panels: &'a [Panel; 2],
    /// The rows.
    pub x: &'a [&'a [QuantBlock]],
    /// Blocks of the rows that the panels hold.
    pub part: &'a Range<usize>,
    /// What the panels' bytes have more than the weights.
    pub offset: i32,
    /// (rows) of each group.
    pub out: [&'a mut [[f32; LANES]]; 2],
}

impl<const SCALES: usize, const MINIMA: bool, const WIDE: bool> Kernel for AddPanels<'_, SCALES, MINIMA, WIDE> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        let (sixes, rest) = if L::LARGE_TILES { self.x.as_chunks::<6>() } else { (&[][..], self.x) };
        let (pairs, rest) = rest.as_chunks::<2>();
        let mut row = 0;
        for x in sixes {
            self.tile(l, x, row);
            row += 6;
        }
        for x in pairs {
            self.tile(l, x, row);
            row += 2;
        }
        for x in rest {
            self.tile(l, &[*x], row);
            row += 1;
        }
    }
}

impl<const SCALES: usize, const MINIMA: bool, const WIDE: bool> AddPanels<'_, SCALES, MINIMA, WIDE> {
    /// Adds the panels' terms, or begins with them, for the `R` rows from `row` on.
    #[allow(clippy::needless_range_loop, reason = "a block is one of the rows' and one of the panels'")]
    #[inline(always)]
    fn tile<L: Lanes, const R: usize>(&mut self, l: L, x: &[&[QuantBlock]; R], row: usize) {
        let Self { panels, part, offset, out, .. } = self;
        let x: [&[QuantBlock]; R] = from_fn(|r| &x[r][part.clone()]);
        let mut sums = [[l.splat(0.0); 2]; R];
        if part.start > 0 {
            for r in 0..R {
                sums[r] = [l.load(&out[0][row + r]), l.load(&out[1][row + r])];
            }
        }
        // A format has minima or an offset: what is known to be 0 costs nothing.
        let offset = if MINIMA { 0 } else { *offset };
        let count = 8 / SCALES;
        for block in 0..part.len() {
            for part in 0..SCALES {
                let mut dots = [[l.splat_bits(0); 2]; R];
                for r in 0..R {
                    dots[r] = [l.splat_bits(x[r][block].offset(SCALES, offset, part)); 2];
                }
                for i in count * part..count * (part + 1) {
                    let w = [l.load_bits(&panels[0].lines[block][i]), l.load_bits(&panels[1].lines[block][i])];
                    for r in 0..R {
                        let a = l.splat_bits(u32::from_le_bytes(x[r][block].words[i]));
                        dots[r] = [l.dot::<WIDE>(dots[r][0], w[0], a), l.dot::<WIDE>(dots[r][1], w[1], a)];
                    }
                }
                for g in 0..2 {
                    let scale = l.load(&panels[g].scales[SCALES * block + part]);
                    for r in 0..R {
                        let factor = l.mul(scale, l.splat(x[r][block].scale));
                        sums[r][g] = l.fma(factor, l.to_float(dots[r][g]), sums[r][g]);
                    }
                }
                if MINIMA {
                    for g in 0..2 {
                        let minimum = l.load(&panels[g].minima[SCALES * block + part]);
                        for r in 0..R {
                            sums[r][g] = l.fma(minimum, l.splat(x[r][block].part_sum(SCALES, part)), sums[r][g]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for g in 0..2 {
                l.store(sums[r][g], &mut out[g][row + r]);
            }
        }
    }
}
