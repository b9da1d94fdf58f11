//! Activations as int8 in blocks of 32: one format for all weight types, each row and block on its own.

use qmesh_models::footprint::QUANT_BLOCK;

use super::{
    columns::Columns,
    lanes::{Kernel, LANES, Lanes, sum},
};

/// Elements per block.
pub(crate) const BLOCK: usize = QUANT_BLOCK.0;

/// Thirty-two activations: x ≈ `scale` · q.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(align(16))]
pub(crate) struct QuantBlock {
    /// q in [-127, 127] as bytes, four to a word.
    pub(crate) words: [[u8; 4]; BLOCK / 4],
    /// Largest |x| / 127, or / 126.
    pub(crate) scale: f32,
    /// `scale` · Σq, rounded once.
    pub(crate) scaled_sum: f32,
    /// Σq of each half.
    pub(crate) sums: [i32; 2],
}

// What workers are given memory for.
const _: () = assert!(size_of::<QuantBlock>() == QUANT_BLOCK.1);

/// Quantises one row: `x` has 32 elements for each block.
pub(crate) struct Quantize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) blocks: &'a mut [QuantBlock],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (x, block) in self.x.as_chunks().0.as_chunks().0.iter().zip(self.blocks) {
            let [low, high] = x;
            (*block, _) = quantize(l, [l.load(low), l.load(high)]);
        }
    }
}

/// Quantises rows in two terms: what `first` leaves of `x` goes to `second`, and both together hold some 15 bits.
pub(crate) struct QuantizeTwice<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) first: &'a mut [QuantBlock],
    pub(crate) second: &'a mut [QuantBlock],
}

impl Kernel for QuantizeTwice<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let blocks = self.first.iter_mut().zip(self.second);
        for ([low, high], (first, second)) in self.x.as_chunks().0.as_chunks().0.iter().zip(blocks) {
            let (block, rest) = quantize(l, [l.load(low), l.load(high)]);
            *first = block;
            (*second, _) = quantize(l, rest);
        }
    }
}

/// Quantises outputs of products: `tiles` (groups, rows, 16) become `blocks` (rows, groups / 2).
pub(crate) struct QuantizeTiles<'a> {
    pub(crate) tiles: &'a [[f32; LANES]],
    pub(crate) rows: usize,
    pub(crate) blocks: Columns<'a, QuantBlock>,
}

impl Kernel for QuantizeTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::lanes::Simd;

    fn quantized(x: &[f32]) -> QuantBlock {
        let mut block = [QuantBlock::default()];
        Simd::available()[0].run(Quantize { x, blocks: &mut block });
        for simd in Simd::available() {
            let mut other = [QuantBlock::default()];
            simd.run(Quantize { x, blocks: &mut other });
            assert_eq!(format!("{block:?}"), format!("{other:?}"), "{}", simd.name());
        }
        block[0]
    }

    #[test]
    fn rounds_ties_to_even_and_sums_halves() {
        let mut x = [0.0; 32];
        (x[0], x[1], x[2], x[20]) = (-254.0, 3.0, 5.0, 7.0);
        x[24..].fill(40.0);
        let block = quantized(&x);
        assert_eq!(block.scale, 2.0);
        assert_eq!(block.words[0].map(u8::cast_signed), [-127, 2, 2, 0]);
        assert_eq!(block.sums, [-123, 4 + 160]);
        assert_eq!(block.scaled_sum, 82.0);
    }

    #[test]
    fn the_nearer_one_of_two_scales_is_taken() {
        let mut x = [0.0; 32];
        x[0] = 126.0;
        x[1..20].fill(7.0);
        assert_eq!(quantized(&x).scale, 1.0);
        x[0] = 127.0;
        assert_eq!(quantized(&x).scale, 1.0);
    }

    #[test]
    fn zeros_and_blocks_too_small_to_invert_become_zero() {
        assert_eq!(quantized(&[0.0; 32]), QuantBlock::default());
        assert_eq!(quantized(&[1e-40; 32]), QuantBlock::default());
    }

    #[test]
    fn two_terms_leave_little() {
        let x: [f32; 32] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * (1 + i % 5) as f32);
        let mut results = Vec::new();
        for simd in Simd::available() {
            let [mut first, mut second] = [[QuantBlock::default()]; 2];
            simd.run(QuantizeTwice { x: &x, first: &mut first, second: &mut second });
            assert_eq!(first[0], quantized(&x));
            results.push([first[0], second[0]]);
        }
        assert!(results.iter().all(|result| *result == results[0]));
        let value = |block: &QuantBlock, i: usize| {
            f64::from(block.scale) * f64::from(block.words.as_flattened()[i].cast_signed())
        };
        for (i, x) in x.into_iter().enumerate() {
            let sum: f64 = results[0].iter().map(|block| value(block, i)).sum();
            assert!((sum - f64::from(x)).abs() <= f64::from(results[0][1].scale) * 0.501, "{x}: {sum}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_visible_in_the_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[5] = bad;
            assert!(!quantized(&x).scale.is_finite());
        }
    }
}
