//! The quantised block formats of GGUF: how sixteen packed rows become lines of unsigned bytes, and scales.
//!
//! A group's block holds, word by word of the file's block, that word of each of the sixteen rows: lane = row. Where the
//! file's block has a lone f16 besides its words, the sixteen of them come last. `pack` makes it so.

use super::lanes::{LANES, Lanes};

/// A quantised format: weight = scale · (q − `OFFSET`) + minimum, with q in 0..=255. `BYTES` is a block's size in the
/// file.
pub(super) trait Format<const BYTES: usize> {
    /// Elements per block of the file.
    const LEN: usize;
    /// Scales per 32 elements.
    const SCALES: usize = 1;
    /// What is subtracted from q.
    const OFFSET: i32 = 0;
    /// Whether there are minima.
    const MINIMA: bool = false;

    /// The scales of a group's block, and its minima if the format has any, in the order of their elements.
    fn scales<L: Lanes>(l: L, group: &Group<BYTES>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]);

    /// The 32 elements number `SUB` of a group's block: line i holds q of elements 4i to 4i + 3 of each row.
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<BYTES>) -> [L::U; 8];
}

/// As [`Format::lines`], for a number that is not known before.
#[inline(always)]
pub(super) fn lines<L: Lanes, F: Format<BYTES>, const BYTES: usize>(
    l: L,
    group: &Group<BYTES>,
    sub: usize,
) -> [L::U; 8] {
    match sub {
        0 => F::lines::<L, 0>(l, group),
        1 => F::lines::<L, 1>(l, group),
        2 => F::lines::<L, 2>(l, group),
        3 => F::lines::<L, 3>(l, group),
        4 => F::lines::<L, 4>(l, group),
        5 => F::lines::<L, 5>(l, group),
        6 => F::lines::<L, 6>(l, group),
        _ => F::lines::<L, 7>(l, group),
    }
}

/// One block of each of sixteen rows, packed.
pub(super) type Group<const BYTES: usize> = [[u8; BYTES]; LANES];

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

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
            let fifth = bit_to_fifth(l, word(l, group, 4 + i), SUB);
            *line = l.or(*line, fifth);
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

/// Word `i` of the block, of all sixteen rows.
#[inline(always)]
fn word<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>, i: usize) -> L::U {
    l.load_bits(group.as_flattened()[64 * i..].first_chunk().expect("the word lies inside the block"))
}

/// The f16 after the words, of all sixteen rows.
#[inline(always)]
fn last_halves<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>) -> L::F {
    l.load_half_bytes(group.as_flattened().last_chunk().expect("blocks are longer than an f16"))
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

/// The four words from `first` on hold elements 0 to 15 in their low and 16 to 31 in their high nibbles.
#[inline(always)]
fn nibbles<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>, first: usize) -> [L::U; 8] {
    let mut lines = [l.splat_bits(0); 8];
    for i in 0..4 {
        let packed = word(l, group, first + i);
        (lines[i], lines[i + 4]) = (low_nibbles(l, packed), high_nibbles(l, packed));
    }
    lines
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

#[inline(always)]
fn low_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(line, l.splat_bits(0x0f0f_0f0f))
}

#[inline(always)]
fn high_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(l.shr::<4>(line), l.splat_bits(0x0f0f_0f0f))
}

/// Adds the fifth bits: bit i of byte k of `high` belongs to byte k of line i, as `pack` has turned them.
#[inline(always)]
fn with_fifth_bits<L: Lanes>(l: L, mut lines: [L::U; 8], high: L::U) -> [L::U; 8] {
    for (i, line) in lines.iter_mut().enumerate() {
        *line = l.or(*line, bit_to_fifth(l, high, i));
    }
    lines
}

/// Bit `bit` of each byte, moved to where the fifth bit of a number is.
#[inline(always)]
fn bit_to_fifth<L: Lanes>(l: L, x: L::U, bit: usize) -> L::U {
    let moved = match bit {
        0 => l.shl::<4>(x),
        1 => l.shl::<3>(x),
        2 => l.shl::<2>(x),
        3 => l.shl::<1>(x),
        4 => x,
        5 => l.shr::<1>(x),
        6 => l.shr::<2>(x),
        _ => l.shr::<3>(x),
    };
    l.and(moved, l.splat_bits(0x1010_1010))
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
