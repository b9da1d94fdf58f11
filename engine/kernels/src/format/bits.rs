//! Elements of one or two bits, or of five to a byte, with one scale.

use super::{Format, Group, k::pairs, last_halves, moved, word};
use crate::lanes::{LANES, Lanes};

pub(crate) struct TQ1_0;
pub(crate) struct TQ2_0;
pub(crate) struct Q1_0;
pub(crate) struct Q2_0;

impl Format<54> for TQ1_0 {
    const LEN: usize = 256;
    const OFFSET: i32 = 1;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<54>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        one_scale(l, group, &mut scales[..8]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<54>) -> [L::U; 8] {
        // Digit i of the first 32 bytes are elements 32i on; of the next 16, elements 160 + 16i on; of the last 4, 240 + 4i on.
        let mut lines = [l.splat_bits(0); 8];
        for (i, line) in lines.iter_mut().enumerate() {
            let (at, digit) = match (SUB, i) {
                (..5, _) => (i, SUB),
                (7, 4..) => (12, i - 4),
                _ => (8 + i % 4, 2 * (SUB - 5) + i / 4),
            };
            *line = ternary_digit(l, word(l, group, at), digit);
        }
        lines
    }
}

impl Format<66> for TQ2_0 {
    const LEN: usize = 256;
    const OFFSET: i32 = 1;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<66>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        one_scale(l, group, &mut scales[..8]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<66>) -> [L::U; 8] {
        pairs::<L, 66, SUB>(l, group, 0)
    }
}

impl Format<18> for Q1_0 {
    const LEN: usize = 128;
    const OFFSET: i32 = 1;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<18>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        one_scale(l, group, &mut scales[..4]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<18>) -> [L::U; 8] {
        // A bit is -1 or 1, which are 0 and 2 here.
        let bits = word(l, group, SUB);
        [
            moved(l, bits, 1, 0x02),
            moved(l, bits, 0, 0x02),
            moved(l, bits, -1, 0x02),
            moved(l, bits, -2, 0x02),
            moved(l, bits, -3, 0x02),
            moved(l, bits, -4, 0x02),
            moved(l, bits, -5, 0x02),
            moved(l, bits, -6, 0x02),
        ]
    }
}

impl Format<18> for Q2_0 {
    const LEN: usize = 64;
    const OFFSET: i32 = 1;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<18>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        one_scale(l, group, &mut scales[..2]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<18>) -> [L::U; 8] {
        let (first, second) = (word(l, group, 2 * SUB), word(l, group, 2 * SUB + 1));
        [
            moved(l, first, 0, 0x03),
            moved(l, first, -2, 0x03),
            moved(l, first, -4, 0x03),
            moved(l, first, -6, 0x03),
            moved(l, second, 0, 0x03),
            moved(l, second, -2, 0x03),
            moved(l, second, -4, 0x03),
            moved(l, second, -6, 0x03),
        ]
    }
}

#[inline(always)]
fn one_scale<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>, scales: &mut [[f32; LANES]]) {
    let d = last_halves(l, group);
    scales.iter_mut().for_each(|scale| l.store(d, scale));
}

/// Digit number `digit` of each byte, which is the first digit of a fraction of 256 in base three once the byte has been
/// multiplied, modulo 256, by as many threes.
#[inline(always)]
fn ternary_digit<L: Lanes>(l: L, bytes: L::U, digit: usize) -> L::U {
    // Two halves, so that three times a byte has room.
    let mask = l.splat_bits(0x00ff_00ff);
    let mut halves = [l.and(bytes, mask), l.and(l.shr::<8>(bytes), mask)];
    for half in &mut halves {
        for _ in 0..digit {
            *half = l.and(l.add_bits(*half, l.shl::<1>(*half)), mask);
        }
        *half = l.and(l.shr::<8>(l.add_bits(*half, l.shl::<1>(*half))), mask);
    }
    l.or(halves[0], l.shl::<8>(halves[1]))
}
