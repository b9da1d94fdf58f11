//! Super-blocks of 256, whose parts have small integers as scales and minima, and one f16 for all of these.

use super::{Format, Group, high_nibbles, last_halves, low_nibbles, moved, word};
use crate::lanes::{LANES, Lanes};

pub(crate) struct Q2K;
pub(crate) struct Q3K;
pub(crate) struct Q4K;
pub(crate) struct Q5K;
pub(crate) struct Q6K;

impl Format<84> for Q2K {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<84>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]) {
        // Of each of the first sixteen bytes, the low nibble is a scale and the high one a minimum.
        let d_dmin = word(l, group, 20);
        let d = l.widen_half(d_dmin);
        let dmin = l.sub(l.splat(0.0), l.widen_half(l.shr::<16>(d_dmin)));
        let nibble = l.splat_bits(0xf);
        for i in 0..4 {
            let mut four = word(l, group, i);
            for j in 0..4 {
                l.store(l.mul(d, l.to_float(l.and(four, nibble))), &mut scales[4 * i + j]);
                l.store(l.mul(dmin, l.to_float(l.and(l.shr::<4>(four), nibble))), &mut minima[4 * i + j]);
                four = l.shr::<8>(four);
            }
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<84>) -> [L::U; 8] {
        pairs::<L, 84, SUB>(l, group, 4)
    }
}

impl Format<110> for Q3K {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = 4;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<110>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        // Sixteen times six bits: the low four as nibbles of two words, the high two as pairs of a third.
        let d = last_halves(l, group);
        let (low, high) = ([word(l, group, 24), word(l, group, 25)], word(l, group, 26));
        for i in 0..4 {
            let nibbles = if i < 2 { low_nibbles(l, low[i]) } else { high_nibbles(l, low[i - 2]) };
            let mut four = l.or(nibbles, moved(l, high, 4 - 2 * i.cast_signed(), 0x30));
            for j in 0..4 {
                let scale = l.sub(l.to_float(l.and(four, l.splat_bits(0xff))), l.splat(32.0));
                l.store(l.mul(d, scale), &mut scales[4 * i + j]);
                four = l.shr::<8>(four);
            }
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<110>) -> [L::U; 8] {
        let mut lines = pairs::<L, 110, SUB>(l, group, 8);
        for (i, line) in lines.iter_mut().enumerate() {
            // Bit SUB of byte k of the high bits belongs to element k.
            *line = l.or(*line, moved(l, word(l, group, i), 2 - SUB.cast_signed(), 0x04));
        }
        lines
    }
}

impl Format<144> for Q4K {
    const LEN: usize = 256;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<144>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]) {
        six_bit_scales(l, group, scales, minima);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<144>) -> [L::U; 8] {
        pair_nibbles::<L, 144, SUB>(l, group, 4)
    }
}

impl Format<176> for Q5K {
    const LEN: usize = 256;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<176>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]) {
        six_bit_scales(l, group, scales, minima);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<176>) -> [L::U; 8] {
        let mut lines = pair_nibbles::<L, 176, SUB>(l, group, 12);
        for (i, line) in lines.iter_mut().enumerate() {
            // Bit SUB of byte k of the high bits belongs to element k.
            *line = l.or(*line, moved(l, word(l, group, 4 + i), 4 - SUB.cast_signed(), 0x10));
        }
        lines
    }
}

impl Format<210> for Q6K {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = 32;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<210>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        let d = last_halves(l, group);
        for i in 0..4 {
            let mut four = word(l, group, 48 + i);
            for j in 0..4 {
                // A signed byte: moved to the top, converted, and scaled back, which is exact.
                let scale = l.mul(l.to_float(l.shl::<24>(four)), l.splat(1.0 / (1 << 24) as f32));
                l.store(l.mul(d, scale), &mut scales[4 * i + j]);
                four = l.shr::<8>(four);
            }
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<210>) -> [L::U; 8] {
        // Each half of 128: 64 bytes of low nibbles, 32 of high pairs; each byte of pairs serves four elements 32 apart.
        let (half, quarter) = (SUB / 4, SUB % 4);
        let pairs = l.splat_bits(0x3030_3030);
        let mut lines = [l.splat_bits(0); 8];
        for (i, line) in lines.iter_mut().enumerate() {
            let (low, high) = (word(l, group, 16 * half + 8 * (quarter % 2) + i), word(l, group, 32 + 8 * half + i));
            *line = match quarter {
                0 => l.or(low_nibbles(l, low), l.and(l.shl::<4>(high), pairs)),
                1 => l.or(low_nibbles(l, low), l.and(l.shl::<2>(high), pairs)),
                2 => l.or(high_nibbles(l, low), l.and(high, pairs)),
                _ => l.or(high_nibbles(l, low), l.and(l.shr::<2>(high), pairs)),
            };
        }
        lines
    }
}

/// From word `first` on, eight words hold two times 32 elements: the low nibbles, then the high ones.
#[inline(always)]
fn pair_nibbles<L: Lanes, const BYTES: usize, const SUB: usize>(l: L, group: &Group<BYTES>, first: usize) -> [L::U; 8] {
    let mut lines = [l.splat_bits(0); 8];
    for (i, line) in lines.iter_mut().enumerate() {
        let packed = word(l, group, first + 8 * (SUB / 2) + i);
        *line = if SUB.is_multiple_of(2) { low_nibbles(l, packed) } else { high_nibbles(l, packed) };
    }
    lines
}

/// From word `first` on, eight words hold four times 32 elements of two bits each, and eight more the other half.
#[inline(always)]
pub(super) fn pairs<L: Lanes, const BYTES: usize, const SUB: usize>(
    l: L,
    group: &Group<BYTES>,
    first: usize,
) -> [L::U; 8] {
    let mut lines = [l.splat_bits(0); 8];
    for (i, line) in lines.iter_mut().enumerate() {
        *line = moved(l, word(l, group, first + 8 * (SUB / 4) + i), -2 * (SUB % 4).cast_signed(), 0x03);
    }
    lines
}

/// Q4_K and Q5_K: d and dmin in word 0, then eight 6-bit scales and eight 6-bit minima in twelve bytes.
#[inline(always)]
fn six_bit_scales<L: Lanes, const BYTES: usize>(
    l: L,
    group: &Group<BYTES>,
    all_scales: &mut [[f32; LANES]],
    all_minima: &mut [[f32; LANES]],
) {
    let [d_dmin, a, b, c] = [word(l, group, 0), word(l, group, 1), word(l, group, 2), word(l, group, 3)];
    let d = l.widen_half(d_dmin);
    let dmin = l.sub(l.splat(0.0), l.widen_half(l.shr::<16>(d_dmin)));
    let (six, four, two) = (l.splat_bits(0x3f3f_3f3f), l.splat_bits(0x0f0f_0f0f), l.splat_bits(0x3030_3030));
    let fields = [
        (l.and(a, six), l.and(b, six)),
        (l.or(l.and(c, four), l.and(l.shr::<2>(a), two)), l.or(l.and(l.shr::<4>(c), four), l.and(l.shr::<2>(b), two))),
    ];
    for (i, (mut scales, mut minima)) in fields.into_iter().enumerate() {
        for j in 0..4 {
            let byte = l.splat_bits(0xff);
            l.store(l.mul(d, l.to_float(l.and(scales, byte))), &mut all_scales[4 * i + j]);
            l.store(l.mul(dmin, l.to_float(l.and(minima, byte))), &mut all_minima[4 * i + j]);
            (scales, minima) = (l.shr::<8>(scales), l.shr::<8>(minima));
        }
    }
}
