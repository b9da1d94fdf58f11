//! Activations as int8 in blocks of 32: one format for all weight types, each row and block on its own.

use super::lanes::{Kernel, Lanes};

/// Elements per block.
pub(crate) const BLOCK: usize = 32;

/// Thirty-two activations: x ≈ `scale` · q.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(align(16))]
pub(crate) struct QuantBlock {
    /// q in [-127, 127] as bytes, four to a word.
    pub(crate) words: [[u8; 4]; BLOCK / 4],
    /// largest |x| / 127.
    pub(crate) scale: f32,
    /// `scale` · Σq, rounded once.
    pub(crate) scaled_sum: f32,
    /// Σq of each half.
    pub(crate) sums: [i32; 2],
}

/// Quantises one row: `x` has 32 elements for each block.
pub(crate) struct Quantize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) blocks: &'a mut [QuantBlock],
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _lanes: L) {
        for (x, block) in self.x.as_chunks().0.iter().zip(self.blocks) {
            *block = quantize(x);
        }
    }
}

#[inline(always)]
fn quantize(x: &[f32; BLOCK]) -> QuantBlock {
    // Bits without the sign order as the magnitudes do, and a NaN is the largest: it cannot be lost.
    let largest = f32::from_bits(x.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
    let mut scale = largest / 127.0;
    let mut inverse = 1.0 / scale;
    if !inverse.is_finite() && scale.is_finite() {
        (scale, inverse) = (0.0, 0.0);
    }
    let mut block = QuantBlock { scale, ..QuantBlock::default() };
    if scale.is_finite() {
        let mut q = [0_i32; BLOCK];
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i32;
        }
        block.sums = [q[..16].iter().sum(), q[16..].iter().sum()];
        for (word, q) in block.words.iter_mut().zip(q.as_chunks::<4>().0) {
            *word = q.map(|q| (q as i8).cast_unsigned());
        }
    }
    block.scaled_sum = scale * (block.sums[0] + block.sums[1]) as f32;
    block
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
        let block = quantized(&x);
        assert_eq!(block.scale, 2.0);
        assert_eq!(block.words[0].map(u8::cast_signed), [-127, 2, 2, 0]);
        assert_eq!(block.sums, [-123, 4]);
        assert_eq!(block.scaled_sum, -238.0);
    }

    #[test]
    fn zeros_and_blocks_too_small_to_invert_become_zero() {
        assert_eq!(quantized(&[0.0; 32]), QuantBlock::default());
        assert_eq!(quantized(&[1e-40; 32]), QuantBlock::default());
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
