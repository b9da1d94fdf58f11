//! Blocks whose elements are nibbles that stand for the values of a table. In each run of 32 elements the low nibbles of
//! sixteen bytes are the first half, and the high ones the second.

use half::f16;

/// Closer together around zero, where most weights are.
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The floats of a sign, two bits of exponent and one of mantissa.
const E2M1_VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Blocks of 32: an f16 scale, then sixteen bytes of nibbles.
pub(super) fn iq4_nl(bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks_exact(18);
    blocks
        .flat_map(|block| nibbles(&block[2..]).map(|nibble| half(block, 0) * iq4(nibble)).collect::<Vec<_>>())
        .collect()
}

/// Blocks of 256: an f16 scale, the high two bits of eight scales of six bits, their low four bits, then eight times
/// sixteen bytes of nibbles. Scales count from -32.
pub(super) fn iq4_xs(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(136) {
        let (high, low) = (u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
        for (sub, run) in block[8..].chunks_exact(16).enumerate() {
            let low = low[sub / 2] >> (4 * (sub % 2)) & 0x0f;
            let six = u16::from(low) | (high >> (2 * sub) & 3) << 4;
            let scale = half(block, 0) * (f32::from(six) - 32.0);
            elements.extend(nibbles(run).map(|nibble| scale * iq4(nibble)));
        }
    }
    elements
}

/// Blocks of 32: a byte e for the scale 2^(e − 127), then sixteen bytes of nibbles. 255 is no number.
pub(super) fn mxfp4(bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks_exact(17);
    let elements = blocks.flat_map(|block| {
        let scale = if block[0] == 255 { f64::NAN } else { 2_f64.powi(i32::from(block[0]) - 127) };
        nibbles(&block[1..]).map(move |nibble| (scale * f64::from(E2M1_VALUES[nibble])) as f32).collect::<Vec<_>>()
    });
    elements.collect()
}

/// Blocks of 64: four bytes, each a scale of sixteen elements, then as many times eight bytes of nibbles. A scale has four bits
/// of exponent and three of mantissa, and no sign; what would be no number is zero.
pub(super) fn nvfp4(bytes: &[u8]) -> Vec<f32> {
    let scale = |byte: u8| {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7) / 8.0);
        match (byte, exponent) {
            (0x7f, _) => 0.0,
            (_, 0) => mantissa * 2_f64.powi(-6),
            (_, exponent) => (1.0 + mantissa) * 2_f64.powi(exponent - 7),
        }
    };
    let blocks = bytes.chunks_exact(36);
    let elements = blocks.flat_map(|block| {
        let runs = block[4..].chunks_exact(8).zip(&block[..4]);
        runs.flat_map(move |(run, byte)| {
            nibbles(run).map(move |nibble| (scale(*byte) * f64::from(E2M1_VALUES[nibble])) as f32).collect::<Vec<_>>()
        })
    });
    elements.collect()
}

/// The low nibbles of bytes, then the high ones.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let low = bytes.iter().map(|byte| usize::from(byte & 0x0f));
    low.chain(bytes.iter().map(|byte| usize::from(byte >> 4)))
}

fn iq4(nibble: usize) -> f32 {
    f32::from(IQ4_VALUES[nibble])
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_nibbles_come_first() {
        let mut block = [0; 18];
        block[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        (block[2], block[17]) = (0xf8, 0x07);
        let row = iq4_nl(&block);
        assert_eq!(row.len(), 32);
        assert_eq!((row[0], row[16], row[15], row[31]), (2.0, 226.0, -20.0, -254.0));
    }

    #[test]
    fn six_bits_of_scale_lie_in_two_places() {
        let mut block = [0; 136];
        block[..2].copy_from_slice(&f16::from_f32(1.0).to_le_bytes());
        // Of the eight scales the first is 33, the second 2 and the last 63.
        block[2..4].copy_from_slice(&0b1100_0000_0000_0010_u16.to_le_bytes());
        (block[4], block[7]) = (0x21, 0xf0);
        (block[8], block[24], block[120]) = (0x08, 0x08, 0x08);
        let row = iq4_xs(&block);
        assert_eq!(row.len(), 256);
        assert_eq!((row[0], row[1], row[32], row[224]), (1.0, -127.0, -30.0, 31.0));
    }

    #[test]
    fn a_byte_is_a_small_float() {
        let mut block = [0; 36];
        // 1.125, the least there is, no number, and the largest.
        (block[0], block[1], block[2], block[3]) = (0x39, 0x01, 0x7f, 0x7e);
        (block[4], block[12], block[20], block[28]) = (0x72, 0x02, 0x02, 0x70);
        let row = nvfp4(&block);
        assert_eq!((row.len(), row[0], row[8], row[16]), (64, 1.125, 6.75, 2_f32.powi(-9)));
        assert_eq!((row[32], row[48], row[56]), (0.0, 0.0, 6.0 * 448.0));
    }

    #[test]
    fn a_byte_is_a_power_of_two() {
        let mut blocks = [0; 34];
        (blocks[0], blocks[1], blocks[17], blocks[18]) = (128, 0x71, 0, 0x07);
        let row = mxfp4(&blocks);
        assert_eq!((row.len(), row[0], row[16], row[1]), (64, 1.0, 12.0, 0.0));
        assert_eq!(f64::from(row[32]), 6.0 * 2_f64.powi(-127), "less than the least normal f32");
        blocks[0] = 255;
        assert!(mxfp4(&blocks)[0].is_nan());
    }
}
