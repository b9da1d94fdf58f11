//! Activations as int8 in blocks of 32: one format for all weight types, each row and block on its own.

use qmesh_arithmetic::layout::{QUANT_BLOCK, QUANT_BLOCK_BYTES};

use super::{
    columns::Columns,
    lanes::{Kernel, LANES, Lanes, entries, sum},
};

/// Elements per block.
pub const BLOCK: usize = QUANT_BLOCK;

/// Thirty-two activations: x ≈ `scale` · q.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(align(16))]
pub struct QuantBlock {
    /// q in [-127, 127] as bytes, four to a word.
    pub words: [[u8; 4]; BLOCK / 4],
    /// Largest |x| / 127, or / 126.
    pub scale: f32,
    /// `scale` · Σq, rounded once.
    pub scaled_sum: f32,
    /// Σq of each half.
    pub sums: [i32; 2],
}

// What workers are given memory for.
const _: () = assert!(size_of::<QuantBlock>() == QUANT_BLOCK_BYTES);

impl QuantBlock {
    /// What an integer dot product of part `part` of `scales` starts with, so that it comes out as if `offset` were
    /// subtracted from the weights.
    #[inline(always)]
    pub(crate) fn offset(&self, scales: usize, offset: i32, part: usize) -> u32 {
        let sum = if scales == 1 { self.sums[0] + self.sums[1] } else { self.sums[part] };
        (-offset * sum).cast_unsigned()
    }

    /// What the minimum of part `part` of `scales` is multiplied by: its activations' sum, rounded once.
    #[inline(always)]
    pub(crate) fn part_sum(&self, scales: usize, part: usize) -> f32 {
        if scales == 1 { self.scaled_sum } else { self.scale * self.sums[part] as f32 }
    }
}

/// Quantises one row: `x` has 32 elements for each block.
pub struct Quantize<'a> {
    /// The row.
    pub x: &'a [f32],
    /// Its blocks.
    pub blocks: &'a mut [QuantBlock],
}

entries!(Quantize<'_> => (), QuantizeTwice<'_> => (), QuantizeTiles<'_> => ());

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        for (x, block) in self.x.as_chunks().0.as_chunks().0.iter().zip(self.blocks) {
            let [low, high] = x;
            (*block, _) = quantize(l, [l.load(low), l.load(high)]);
        }
    }
}

/// Quantises rows in two terms: what `first` leaves of `x` goes to `second`, and both together hold some 15 bits.
pub struct QuantizeTwice<'a> {
    /// The rows.
    pub x: &'a [f32],
    /// The larger terms.
    pub first: &'a mut [QuantBlock],
    /// What they leave.
    pub second: &'a mut [QuantBlock],
}

impl Kernel for QuantizeTwice<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let blocks = self.first.iter_mut().zip(self.second);
        for ([low, high], (first, second)) in self.x.as_chunks().0.as_chunks().0.iter().zip(blocks) {
            let (block, rest) = quantize(l, [l.load(low), l.load(high)]);
            *first = block;
            (*second, _) = quantize(l, rest);
        }
    }
}

/// Quantises outputs of products: `tiles` (groups, rows, 16) become `blocks` (rows, groups / 2).
pub struct QuantizeTiles<'a> {
    /// (groups, rows, 16), as products leave them.
    pub tiles: &'a [[f32; LANES]],
    /// Rows of each group.
    pub rows: usize,
    /// Where the blocks of these groups go, of each row.
    pub blocks: Columns<'a, QuantBlock>,
}

impl Kernel for QuantizeTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        for row in 0..self.rows {
            for (pair, block) in self.tiles.chunks_exact(2 * self.rows).zip(self.blocks.row(row)) {
                (*block, _) = quantize(l, [l.load(&pair[row]), l.load(&pair[self.rows + row])]);
            }
        }
    }
}

/// A block rounded with one scale.
struct Rounded<L: Lanes> {
    scale: f32,
    /// The integers in the low bits of [`MAGIC`]'s.
    q: [L::U; 2],
    /// x − scale · q.
    rest: [L::F; 2],
    /// Σ rest².
    error: f32,
}

/// Adding 1.5·2^23 rounds to an integer, ties to even, and leaves it in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// With 127 or with 126 steps to the largest magnitude, whichever is nearer: both have the largest one right, and the
/// others fall to either side by chance. Beside the block, what it leaves of x.
#[inline(always)]
fn quantize<L: Lanes>(l: L, x: [L::F; 2]) -> (QuantBlock, [L::F; 2]) {
    // Bits without the sign order as the magnitudes do, and a NaN is the largest: it cannot be lost.
    let magnitude = l.splat_bits(0x7fff_ffff);
    let largest = l.max_bits(l.and(l.to_bits(x[0]), magnitude), l.and(l.to_bits(x[1]), magnitude));
    let largest = f32::from_bits(l.largest_word(largest));
    let scale = largest / 127.0;
    if !scale.is_finite() {
        return (QuantBlock { scale, scaled_sum: scale, ..QuantBlock::default() }, [l.splat(0.0); 2]);
    }
    if !(1.0 / scale).is_finite() {
        return (QuantBlock::default(), [l.splat(0.0); 2]);
    }
    let (fine, coarse) = (rounded(l, x, scale), rounded(l, x, largest / 126.0));
    let Rounded { scale, q, rest, .. } = if coarse.error < fine.error { coarse } else { fine };
    let mut block = QuantBlock { scale, ..QuantBlock::default() };
    let zero = l.sum_words(l.splat_bits(MAGIC.to_bits()));
    let halves = block.words.as_chunks_mut::<4>().0;
    for ((q, words), sum) in q.into_iter().zip(halves).zip(&mut block.sums) {
        *words = *l.low_bytes(q).as_chunks().0.first_chunk().expect("sixteen bytes are four words");
        *sum = l.sum_words(q).wrapping_sub(zero).cast_signed();
    }
    block.scaled_sum = scale * (block.sums[0] + block.sums[1]) as f32;
    (block, rest)
}

#[inline(always)]
fn rounded<L: Lanes>(l: L, x: [L::F; 2], scale: f32) -> Rounded<L> {
    let (inverse, minus) = (l.splat(1.0 / scale), l.splat(-scale));
    let (mut q, mut rest, mut squares) = ([l.splat_bits(0); 2], x, l.splat(0.0));
    for i in 0..2 {
        let shifted = l.add(l.mul(x[i], inverse), l.splat(MAGIC));
        rest[i] = l.fma(minus, l.sub(shifted, l.splat(MAGIC)), x[i]);
        squares = l.fma(rest[i], rest[i], squares);
        q[i] = l.to_bits(shifted);
    }
    Rounded { scale, q, rest, error: sum(l, squares) }
}
