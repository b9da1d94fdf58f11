//! Blocks of elements of one or two bits, or of five elements to a byte, and an f16 scale.

use half::f16;

/// Blocks of 128: the scale, then a bit for each element, -1 or 1.
pub(super) fn q1_0(bytes: &[u8]) -> Vec<f32> {
    let element = |block: &[u8], k: usize| f32::from(block[2 + k / 8] >> (k % 8) & 1) * 2.0 - 1.0;
    scaled(bytes, (18, 0), 128, element)
}

/// Blocks of 64: the scale, then two bits for each element, -1 to 2.
pub(super) fn q2_0(bytes: &[u8]) -> Vec<f32> {
    scaled(bytes, (18, 0), 64, |block, k| f32::from(block[2 + k / 4] >> (2 * (k % 4)) & 3) - 1.0)
}

/// Blocks of 256: two times 32 bytes, each pair of bits of which holds 32 elements, then the scale.
pub(super) fn tq2_0(bytes: &[u8]) -> Vec<f32> {
    let element = |block: &[u8], k: usize| block[32 * (k / 128) + k % 32] >> (2 * (k / 32 % 4)) & 3;
    scaled(bytes, (66, 64), 256, |block, k| f32::from(element(block, k)) - 1.0)
}

/// Blocks of 256: runs of 32, sixteen and four bytes, each of whose digits in base three holds as many elements, then the
/// scale. The last run has four digits, the others five.
pub(super) fn tq1_0(bytes: &[u8]) -> Vec<f32> {
    let element = |block: &[u8], k: usize| {
        let (byte, digit) = match k {
            ..160 => (k % 32, k / 32),
            160..240 => (32 + k % 16, (k - 160) / 16),
            _ => (48 + k % 4, (k - 240) / 4),
        };
        // A byte is the fraction of 256 that its five digits are, rounded up.
        let fraction = u16::from(block[byte]) * [1, 3, 9, 27, 81][digit] % 256;
        f32::from(fraction * 3 / 256) - 1.0
    };
    scaled(bytes, (54, 52), 256, element)
}

/// `len` elements a block, scaled by the f16 at `scale` of `size` bytes.
fn scaled(
    bytes: &[u8],
    (size, scale): (usize, usize),
    len: usize,
    element: impl Fn(&[u8], usize) -> f32 + Copy,
) -> Vec<f32> {
    let blocks = bytes.chunks_exact(size);
    let elements = blocks.flat_map(|block| {
        let d = f16::from_le_bytes([block[scale], block[scale + 1]]).to_f32();
        (0..len).map(move |k| d * element(block, k))
    });
    elements.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_where_their_format_has_them() {
        let [low, high] = f16::from_f32(2.0).to_le_bytes();
        let mut block = [0; 66];
        (block[0], block[1]) = (low, high);
        (block[2], block[17]) = (0b10, 0x80);
        let row = q1_0(&block[..18]);
        assert_eq!((row.len(), row[0], row[1], row[127]), (128, -2.0, 2.0, 2.0));
        let row = q2_0(&block[..18]);
        assert_eq!((row.len(), row[0], row[1], row[63]), (64, 2.0, -2.0, 2.0));
        block = [0; 66];
        (block[64], block[65], block[33]) = (low, high, 0b1000);
        let row = tq2_0(&block);
        assert_eq!((row.len(), row[0], row[129], row[161]), (256, -2.0, -2.0, 2.0));
    }

    #[test]
    fn digits_of_base_three_are_read() {
        let [low, high] = f16::from_f32(1.0).to_le_bytes();
        let mut block = [0; 54];
        (block[52], block[53]) = (low, high);
        // The digits 2, 0, 1, 2, 1 are 178 of 243.
        block[1] = (178_u32 * 256).div_ceil(243) as u8;
        let row = tq1_0(&block);
        assert_eq!(row.len(), 256);
        assert_eq!([row[1], row[33], row[65], row[97], row[129]], [1.0, -1.0, 0.0, 1.0, 0.0]);
    }
}
