//! Blocks of nibbles that stand for the values of a table.

use super::{Format, Group, high_nibbles, last_halves, low_nibbles, nibbles, word};
use crate::lanes::{LANES, Lanes};

pub(crate) struct IQ4NL;
pub(crate) struct IQ4XS;
pub(crate) struct MXFP4;
pub(crate) struct NVFP4;

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

impl Format<36> for NVFP4 {
    const LEN: usize = 64;
    const SCALES: usize = 2;
    const OFFSET: i32 = 12;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<36>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        // Four bits of exponent, counted from 7, and three of mantissa are, in an f16's places, one counted from 15. The
        // numbers of the table are twice what they stand for.
        let mut four = word(l, group, 0);
        for scale in &mut scales[..4] {
            let half = l.shl::<7>(l.and(four, l.splat_bits(0x7f)));
            l.store(l.mul(l.widen_half(half), l.splat(128.0)), scale);
            four = l.shr::<8>(four);
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<36>) -> [L::U; 8] {
        // Of each sixteen, the low nibbles of eight bytes are the first half, and the high ones the second.
        let mut lines = [l.splat_bits(0); 8];
        for i in 0..4 {
            let packed = word(l, group, 1 + 4 * SUB + i);
            let at = 4 * (i / 2) + i % 2;
            (lines[at], lines[at + 2]) = (low_nibbles(l, packed), high_nibbles(l, packed));
        }
        translated(l, &E2M1, lines)
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
