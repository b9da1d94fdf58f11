//! Random bytes that are valid blocks of a tensor type: the same for the same seed, and fast enough to fill gigabytes.

use qmesh_models::tensor::TensorType;

/// A xorshift generator: fast, and random enough for weights that are only timed.
#[derive(Clone, Debug)]
pub struct RandomBlocks {
    state: u64,
}

impl RandomBlocks {
    /// Begins with `seed`; 0, from which nothing would follow, counts as 1.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.max(1) }
    }

    /// Fills `into` with random blocks of `dtype`. Their floats (scales, minima, or the elements themselves) have a random
    /// sign and mantissa and a magnitude from 2^-`exponent` to twice that: random exponents would make some of them
    /// infinite and many too small to be normal. `exponent` is at most 14, the smallest normal one of F16.
    ///
    /// # Panics
    /// Where `exponent` is larger.
    pub fn fill(&mut self, dtype: TensorType, exponent: u16, into: &mut [u8]) {
        assert!(exponent <= 14, "2^-{exponent} is no normal F16");
        self.bytes(into);
        let (floats, format) = floats(dtype);
        for block in into.chunks_exact_mut(dtype.block_bytes()) {
            for &at in floats {
                let float = format.scaled(u16::from_le_bytes([block[at], block[at + 1]]), exponent);
                block[at..at + 2].copy_from_slice(&float.to_le_bytes());
            }
            if dtype == TensorType::IQ1M {
                // Its f16 is in the upper nibbles of four words, the exponent in those of the last two.
                let bits = 15 - exponent as u8;
                (block[55], block[53]) = (block[55] & 0x8F | bits >> 2 << 4, block[53] & 0x3F | (bits & 3) << 6);
            }
        }
    }

    fn bytes(&mut self, into: &mut [u8]) {
        for bytes in into.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            bytes.copy_from_slice(&self.state.to_le_bytes()[..bytes.len()]);
        }
    }
}

/// Where the floats of a block stand, in bytes, and what they are.
fn floats(dtype: TensorType) -> (&'static [usize], FloatFormat) {
    match dtype {
        TensorType::F32 => (&[2], FloatFormat::Float),
        TensorType::BF16 => (&[0], FloatFormat::Float),
        TensorType::F16 => (&[0], FloatFormat::Half),
        TensorType::MXFP4 => (&[0], FloatFormat::Byte),
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => (&[0], FloatFormat::Half),
        TensorType::IQ4NL | TensorType::IQ4XS | TensorType::Q1_0 | TensorType::Q2_0 => (&[0], FloatFormat::Half),
        TensorType::IQ1S | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => (&[0], FloatFormat::Half),
        TensorType::IQ3XXS | TensorType::IQ3S => (&[0], FloatFormat::Half),
        TensorType::IQ1M => (&[], FloatFormat::Half),
        TensorType::NVFP4 => (&[0, 1, 2, 3], FloatFormat::Small),
        TensorType::TQ1_0 => (&[52], FloatFormat::Half),
        TensorType::TQ2_0 => (&[64], FloatFormat::Half),
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => (&[0, 2], FloatFormat::Half),
        TensorType::Q2K => (&[80, 82], FloatFormat::Half),
        TensorType::Q3K => (&[108], FloatFormat::Half),
        TensorType::Q6K => (&[208], FloatFormat::Half),
    }
}

/// Where the exponent is in the two bytes of a float, or in its upper two.
#[derive(Clone, Copy)]
enum FloatFormat {
    /// Eight bits behind the sign: BF16, and the upper half of F32.
    Float,
    /// Five bits behind the sign.
    Half,
    /// The first byte, which is all of the float.
    Byte,
    /// The first byte: four bits behind a sign that does not count. From 2^-6 on it is normal.
    Small,
}

impl FloatFormat {
    /// The float with its own sign and mantissa, between 2^-`exponent` and twice that.
    fn scaled(self, bits: u16, exponent: u16) -> u16 {
        match self {
            Self::Float => bits & 0x807F | (127 - exponent) << 7,
            Self::Half => bits & 0x83FF | (15 - exponent) << 10,
            Self::Byte => bits & 0xFF00 | (127 - exponent),
            Self::Small => bits & 0xFF87 | (7 - exponent.min(6)) << 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_normal() {
        for dtype in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            let mut bytes = vec![0; dtype.block_bytes() * 512];
            RandomBlocks::new(1).fill(dtype, 9, &mut bytes);
            for block in bytes.chunks_exact(dtype.block_bytes()) {
                let upper = u16::from_le_bytes([block[block.len() - 2], block[block.len() - 1]]);
                let exponent = if dtype == TensorType::F16 { (upper >> 10 & 31) + 112 } else { upper >> 7 & 255 };
                assert_eq!(exponent, 118, "{dtype}");
            }
        }
    }

    #[test]
    fn a_float_in_four_places_is_normal() {
        let mut bytes = vec![0; 56 * 512];
        RandomBlocks::new(1).fill(TensorType::IQ1M, 9, &mut bytes);
        for block in bytes.chunks_exact(56) {
            let half = (0..4).fold(0, |half, i| half | u16::from(block[49 + 2 * i] >> 4) << (4 * i));
            assert_eq!(half >> 10 & 31, 6);
        }
    }

    #[test]
    fn pieces_of_whole_words_follow_each_other() {
        let (mut whole, mut pieces) = (vec![0; 144 * 8], vec![0; 144 * 8]);
        RandomBlocks::new(7).fill(TensorType::Q4K, 14, &mut whole);
        let mut random = RandomBlocks::new(7);
        pieces.chunks_mut(144 * 2).for_each(|piece| random.fill(TensorType::Q4K, 14, piece));
        assert_eq!(whole, pieces);
        RandomBlocks::new(8).fill(TensorType::Q4K, 14, &mut pieces);
        assert_ne!(whole, pieces);
    }
}
