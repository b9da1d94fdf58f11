//! Blocks of 32 with a scale, and perhaps a minimum, as f16.

use super::{Format, Group, last_halves, moved, nibbles, word};
use crate::lanes::{LANES, Lanes};

pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;
pub(crate) struct Q8_0;

impl Format<18> for Q4_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<18>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        l.store(last_halves(l, group), &mut scales[0]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<18>) -> [L::U; 8] {
        nibbles(l, group, 0)
    }
}

impl Format<20> for Q4_1 {
    const LEN: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<20>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]) {
        scale_and_minimum(l, group, scales, minima);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<20>) -> [L::U; 8] {
        nibbles(l, group, 1)
    }
}

impl Format<22> for Q5_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 16;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<22>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        l.store(last_halves(l, group), &mut scales[0]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<22>) -> [L::U; 8] {
        with_fifth_bits(l, nibbles(l, group, 1), word(l, group, 0))
    }
}

impl Format<24> for Q5_1 {
    const LEN: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<24>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]) {
        scale_and_minimum(l, group, scales, minima);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<24>) -> [L::U; 8] {
        with_fifth_bits(l, nibbles(l, group, 2), word(l, group, 1))
    }
}

impl Format<34> for Q8_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 128;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<34>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        l.store(last_halves(l, group), &mut scales[0]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<34>) -> [L::U; 8] {
        let mut lines = [l.splat_bits(0); 8];
        for (i, line) in lines.iter_mut().enumerate() {
            *line = word(l, group, i);
        }
        lines
    }
}

/// Word 0 holds the scale and the minimum as f16.
#[inline(always)]
fn scale_and_minimum<L: Lanes, const BYTES: usize>(
    l: L,
    group: &Group<BYTES>,
    scales: &mut [[f32; LANES]],
    minima: &mut [[f32; LANES]],
) {
    let both = word(l, group, 0);
    l.store(l.widen_half(both), &mut scales[0]);
    l.store(l.widen_half(l.shr::<16>(both)), &mut minima[0]);
}

/// Adds the fifth bits: bit i of byte k of `high` belongs to byte k of line i, as `pack` has turned them.
#[inline(always)]
fn with_fifth_bits<L: Lanes>(l: L, mut lines: [L::U; 8], high: L::U) -> [L::U; 8] {
    for (i, line) in lines.iter_mut().enumerate() {
        *line = l.or(*line, moved(l, high, 4 - i.cast_signed(), 0x10));
    }
    lines
}
