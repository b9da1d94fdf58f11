//! Blocks of nibbles that stand for the values of a table.

use super::{Format, Group, last_halves, nibbles, word};
use crate::kernel::lanes::{LANES, Lanes};

pub(in crate::kernel) struct IQ4NL;
pub(in crate::kernel) struct IQ4XS;
pub(in crate::kernel) struct MXFP4;

/// Closer together around zero, where most weights are.
const IQ4: [u8; 16] = offset::<128>([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]);

/// Twice the floats of a sign, two bits of exponent and one of mantissa, so that they are integers.
const E2M1: [u8; 16] = offset::<12>([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);

impl Format<18> for IQ4NL {
    const LEN: usize = 32;
    const OFFSET: i32 = 128;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<18>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        l.store(last_halves(l, group), &mut scales[0]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<18>) -> [L::U; 8] {
        translated(l, &IQ4, nibbles(l, group, 0))
    }
}

impl Format<136> for IQ4XS {
    const LEN: usize = 256;
    const OFFSET: i32 = 128;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<136>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        // Eight times six bits: the high two as pairs behind the f16, the low four as nibbles of the next word.
        let first = word(l, group, 0);
        let d = l.widen_half(first);
        let (mut low, mut high) = (word(l, group, 1), l.shr::<12>(first));
        for scales in &mut scales[..8] {
            let six = l.or(l.and(low, l.splat_bits(0x0f)), l.and(high, l.splat_bits(0x30)));
            l.store(l.mul(d, l.sub(l.to_float(six), l.splat(32.0))), scales);
            (low, high) = (l.shr::<4>(low), l.shr::<2>(high));
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<136>) -> [L::U; 8] {
        translated(l, &IQ4, nibbles(l, group, 2 + 4 * SUB))
    }
}

impl Format<17> for MXFP4 {
    const LEN: usize = 32;
    const OFFSET: i32 = 12;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<17>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        // A byte e is 2^(e - 127), which has no normal f32 where e is 0; 255, which is no number, becomes infinite.
        let exponents = l.widen_bytes(group.as_flattened().last_chunk().expect("a block has a byte besides its words"));
        let powers = l.of_bits(l.max_bits(l.shl::<23>(exponents), l.splat_bits(0x0040_0000)));
        l.store(l.mul(powers, l.splat(0.5)), &mut scales[0]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<17>) -> [L::U; 8] {
        translated(l, &E2M1, nibbles(l, group, 0))
    }
}

#[inline(always)]
fn translated<L: Lanes>(l: L, table: &[u8; 16], mut lines: [L::U; 8]) -> [L::U; 8] {
    for line in &mut lines {
        *line = l.translate(table, *line);
    }
    lines
}

/// The values plus `BY`, none of which is negative then.
const fn offset<const BY: u8>(values: [i8; 16]) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = values[i].cast_unsigned().wrapping_add(BY);
        i += 1;
    }
    bytes
}

#[cfg(test)]
pub(in crate::kernel) mod tests {
    use half::f16;
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::kernel::{
        lanes::Simd,
        matrix::tests::{noise, packed},
    };

    /// Random blocks of this file's formats as bytes of a file, with scales among them that are zero or too small to be
    /// normal, and their values as the formats' descriptions have them.
    pub(in crate::kernel) fn random_blocks(dtype: TensorType, count: usize) -> (Vec<u8>, Vec<f32>) {
        let random = noise(count * dtype.block_bytes(), count as u64);
        let mut file: Vec<u8> = random.iter().map(|x| x.to_bits().to_le_bytes()[1]).collect();
        let mut values = Vec::new();
        for (i, block) in file.chunks_mut(dtype.block_bytes()).enumerate() {
            if dtype == TensorType::MXFP4 {
                block[0] = [120, 121, 122, 123, 124, 125, 0, 1, 2][i % 9];
            } else {
                let usual = f16::from_f32(random[i] / dtype.block_len() as f32).to_bits();
                let scale = [usual, usual, usual, usual, usual, usual, 0x0000, 0x0001, 0x83ff][i % 9];
                block[..2].copy_from_slice(&scale.to_le_bytes());
            }
            values.extend((0..dtype.block_len()).map(|k| value(dtype, block, k) as f32));
        }
        (file, values)
    }

    /// Element `k` of a block of the file.
    fn value(dtype: TensorType, block: &[u8], k: usize) -> f64 {
        let nibble = |bytes: &[u8]| usize::from(if k % 32 < 16 { bytes[k % 16] & 15 } else { bytes[k % 16] >> 4 });
        let iq4 = |bytes: &[u8]| f64::from(IQ4[nibble(bytes)]) - 128.0;
        let d = f16::from_le_bytes([block[0], block[1]]).to_f64();
        if dtype == TensorType::MXFP4 {
            2f64.powi(i32::from(block[0]) - 127) * e2m1(nibble(&block[1..]))
        } else if dtype == TensorType::IQ4NL {
            d * iq4(&block[2..])
        } else {
            let sub = k / 32;
            let low = block[4 + sub / 2] >> (4 * (sub % 2)) & 15;
            let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * sub) & 3;
            d * (f64::from(low) + 16.0 * f64::from(high) - 32.0) * iq4(&block[8 + 16 * sub..])
        }
    }

    /// The float with this sign, two bits of exponent and one of mantissa.
    fn e2m1(bits: usize) -> f64 {
        let (sign, exponent, mantissa) = (bits >> 3, bits >> 1 & 3, (bits & 1) as f64 / 2.0);
        let magnitude = if exponent == 0 { mantissa } else { (1.0 + mantissa) * f64::from(1 << (exponent - 1)) };
        if sign == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn looked_up_values_are_exact() {
        for dtype in [TensorType::IQ4NL, TensorType::IQ4XS, TensorType::MXFP4] {
            let (file, values) = random_blocks(dtype, 19 * 3);
            let matrix = packed(dtype, 19, 3 * dtype.block_len(), &file);
            let ids: Vec<u32> = (0..19).collect();
            for simd in Simd::available() {
                let mut rows = vec![0.0; values.len()];
                matrix.look_up(simd, &ids, &mut rows);
                assert_eq!(rows, values, "{dtype} {}", simd.name());
            }
        }
    }
}
