//! Super-blocks of 256 whose elements are in codebooks, four or eight to an index. Signs and what is added to the elements of
//! IQ1 are part of the integers, so that scales are all that is multiplied.
//!
//! `pack::codes` says how the words are turned: indices lie one above the other in a word, and the signs of a line are one
//! bit of each byte.

use qmesh_arithmetic::grid;

use super::{Format, Group, last_halves, line, moved, word};
use crate::lanes::{LANES, Lanes};

pub(crate) struct IQ1S;
pub(crate) struct IQ1M;
pub(crate) struct IQ2XXS;
pub(crate) struct IQ2XS;
pub(crate) struct IQ2S;
pub(crate) struct IQ3XXS;
pub(crate) struct IQ3S;

static IQ1: [u32; 2048] = eights(&grid::IQ1);
static IQ2_XXS: [u32; 256] = eights(&grid::IQ2_XXS);
static IQ2_XS: [u32; 512] = eights(&grid::IQ2_XS);
static IQ2_S: [u32; 1024] = eights(&grid::IQ2_S);
static IQ3_XXS: [u32; 256] = fours(&grid::IQ3_XXS);
static IQ3_S: [u32; 512] = fours(&grid::IQ3_S);

/// What a code and, above it, a sign stand for, plus 64.
const IQ2_ELEMENTS: [u8; 16] = signed(&grid::IQ2_ELEMENTS);
const IQ3_XXS_ELEMENTS: [u8; 16] = signed(&grid::IQ3_XXS_ELEMENTS);
const IQ3_S_ELEMENTS: [u8; 16] = signed(&[1, 3, 5, 7, 9, 11, 13, 15]);

/// Eight times an element of IQ1 and its shift are 8 · code − 8 ± 1: plus 9, that is 8 · code and 2 or 0.
const IQ1_OFFSET: i32 = 9;

impl Format<50> for IQ1S {
    const LEN: usize = 256;
    const OFFSET: i32 = IQ1_OFFSET;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<50>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        let d = l.mul(last_halves(l, group), l.splat(0.125));
        for i in 0..4 {
            let both = word(l, group, 8 + i);
            l.store(l.mul(d, odd(l, l.and(l.shr::<11>(both), l.splat_bits(0x0e)))), &mut scales[2 * i]);
            l.store(l.mul(d, odd(l, l.and(l.shr::<27>(both), l.splat_bits(0x0e)))), &mut scales[2 * i + 1]);
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<50>) -> [L::U; 8] {
        let (low, high) = (line(group, SUB), half::<L, 50, SUB>(l, group));
        // The sign of the shift, bit 15, in each byte: where it is not set, 2 is added.
        let plus = l.xor(l.and(l.shr::<14>(high), l.splat_bits(2)), l.splat_bits(2));
        let plus = in_each_byte(l, plus);
        shifted(l, iq1_codes(l, low, high), [plus; 4])
    }
}

impl Format<56> for IQ1M {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = IQ1_OFFSET;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<56>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        // Four times sixteen bits: a nibble of the f16 above four scales of three bits.
        let both = [word(l, group, 12), word(l, group, 13)];
        let nibbles = [
            l.and(l.shr::<12>(both[0]), l.splat_bits(0x000f)),
            l.and(l.shr::<24>(both[0]), l.splat_bits(0x00f0)),
            l.and(l.shr::<4>(both[1]), l.splat_bits(0x0f00)),
            l.and(l.shr::<16>(both[1]), l.splat_bits(0xf000)),
        ];
        let half = l.or(l.or(nibbles[0], nibbles[1]), l.or(nibbles[2], nibbles[3]));
        let d = l.mul(l.widen_half(half), l.splat(0.125));
        for (i, both) in both.into_iter().enumerate() {
            // Twice the scale: one bit above nothing.
            for (part, mut four) in [l.shl::<1>(both), l.shr::<15>(both)].into_iter().enumerate() {
                for scale in &mut scales[8 * i + 4 * part..][..4] {
                    l.store(l.mul(d, odd(l, l.and(four, l.splat_bits(0x0e)))), scale);
                    four = l.shr::<3>(four);
                }
            }
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<56>) -> [L::U; 8] {
        let (low, high) = (line(group, SUB), half::<L, 56, SUB>(l, group));
        // The signs of four shifts, bits 12 to 15, in each byte: where one is not set, 2 is added.
        let signs = l.and(l.shr::<12>(high), l.splat_bits(0x0f));
        let signs = l.xor(in_each_byte(l, signs), l.splat_bits(0x0f0f_0f0f));
        let plus = [moved(l, signs, 1, 2), moved(l, signs, 0, 2), moved(l, signs, -1, 2), moved(l, signs, -2, 2)];
        shifted(l, iq1_codes(l, low, high), plus)
    }
}

impl Format<66> for IQ2XXS {
    const LEN: usize = 256;
    const OFFSET: i32 = 64;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<66>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        let d = l.mul(last_halves(l, group), l.splat(0.125));
        for (sub, scale) in scales[..8].iter_mut().enumerate() {
            l.store(l.mul(d, odd(l, l.shr::<27>(word(l, group, 2 * sub + 1)))), scale);
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<66>) -> [L::U; 8] {
        let indices = line(group, 2 * SUB);
        let codes = [
            l.gather::<256, 0>(&IQ2_XXS, indices),
            l.gather::<256, 8>(&IQ2_XXS, indices),
            l.gather::<256, 16>(&IQ2_XXS, indices),
            l.gather::<256, 24>(&IQ2_XXS, indices),
        ];
        elements(l, &IQ2_ELEMENTS, both_fours(l, codes), eighth_signs(l, word(l, group, 2 * SUB + 1)))
    }
}

impl Format<74> for IQ2XS {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = 64;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<74>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        nibble_scales(l, group, 16, scales);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<74>) -> [L::U; 8] {
        let (indices, signs) = (line(group, 2 * SUB), word(l, group, 2 * SUB + 1));
        let rest = l.shl::<5>(l.shr::<28>(signs));
        let codes = [
            l.gather::<512, 0>(&IQ2_XS, indices),
            l.gather::<512, 9>(&IQ2_XS, indices),
            l.gather::<512, 18>(&IQ2_XS, indices),
            gather_last::<L, 512, 27>(l, &IQ2_XS, indices, rest),
        ];
        elements(l, &IQ2_ELEMENTS, both_fours(l, codes), eighth_signs(l, signs))
    }
}

impl Format<82> for IQ2S {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = 64;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<82>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        nibble_scales(l, group, 18, scales);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<82>) -> [L::U; 8] {
        let (indices, rest) = (line(group, SUB), l.shl::<2>(byte::<L, 82, SUB>(l, group, 16)));
        let codes = [
            l.gather::<1024, 0>(&IQ2_S, indices),
            l.gather::<1024, 10>(&IQ2_S, indices),
            l.gather::<1024, 20>(&IQ2_S, indices),
            gather_last::<L, 1024, 30>(l, &IQ2_S, indices, rest),
        ];
        elements(l, &IQ2_ELEMENTS, both_fours(l, codes), word(l, group, 8 + SUB))
    }
}

impl Format<98> for IQ3XXS {
    const LEN: usize = 256;
    const OFFSET: i32 = 64;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<98>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        let d = l.mul(last_halves(l, group), l.splat(0.25));
        for (sub, scale) in scales[..8].iter_mut().enumerate() {
            l.store(l.mul(d, odd(l, l.shr::<27>(word(l, group, 16 + sub)))), scale);
        }
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<98>) -> [L::U; 8] {
        let (first, second) = (line(group, 2 * SUB), line(group, 2 * SUB + 1));
        let codes = [
            l.gather::<256, 0>(&IQ3_XXS, first),
            l.gather::<256, 8>(&IQ3_XXS, first),
            l.gather::<256, 16>(&IQ3_XXS, first),
            l.gather::<256, 24>(&IQ3_XXS, first),
            l.gather::<256, 0>(&IQ3_XXS, second),
            l.gather::<256, 8>(&IQ3_XXS, second),
            l.gather::<256, 16>(&IQ3_XXS, second),
            l.gather::<256, 24>(&IQ3_XXS, second),
        ];
        elements(l, &IQ3_XXS_ELEMENTS, codes, eighth_signs(l, word(l, group, 16 + SUB)))
    }
}

impl Format<110> for IQ3S {
    const LEN: usize = 256;
    const OFFSET: i32 = 64;
    const FROM_PANELS: bool = true;

    #[inline(always)]
    fn scales<L: Lanes>(l: L, group: &Group<110>, scales: &mut [[f32; LANES]], _: &mut [[f32; LANES]]) {
        let d = last_halves(l, group);
        let nibbles = word(l, group, 26);
        // Twice each nibble.
        let mut twice = l.shl::<1>(nibbles);
        for scale in &mut scales[..7] {
            l.store(l.mul(d, odd(l, l.and(twice, l.splat_bits(0x1e)))), scale);
            twice = l.shr::<4>(twice);
        }
        l.store(l.mul(d, odd(l, l.shr::<27>(nibbles))), &mut scales[7]);
    }

    #[inline(always)]
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<110>) -> [L::U; 8] {
        let rest = byte::<L, 110, SUB>(l, group, 16);
        let rest = [l.and(l.shl::<5>(rest), l.splat_bits(0x1e0)), l.and(l.shl::<1>(rest), l.splat_bits(0x1e0))];
        let (first, second) = (line(group, 2 * SUB), line(group, 2 * SUB + 1));
        let codes = [
            l.gather::<512, 0>(&IQ3_S, first),
            l.gather::<512, 9>(&IQ3_S, first),
            l.gather::<512, 18>(&IQ3_S, first),
            gather_last::<L, 512, 27>(l, &IQ3_S, first, rest[0]),
            l.gather::<512, 0>(&IQ3_S, second),
            l.gather::<512, 9>(&IQ3_S, second),
            l.gather::<512, 18>(&IQ3_S, second),
            gather_last::<L, 512, 27>(l, &IQ3_S, second, rest[1]),
        ];
        elements(l, &IQ3_S_ELEMENTS, codes, word(l, group, 18 + SUB))
    }
}

/// The float of `twice` with the lowest bit set, which it need not be.
#[inline(always)]
fn odd<L: Lanes>(l: L, twice: L::U) -> L::F {
    l.to_float(l.or(twice, l.splat_bits(1)))
}

/// IQ2_XS and IQ2_S: from word `first` on, sixteen nibbles, of which the lower one of a byte comes first.
#[inline(always)]
fn nibble_scales<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>, first: usize, all: &mut [[f32; LANES]]) {
    let d = l.mul(last_halves(l, group), l.splat(0.125));
    for i in 0..2 {
        let nibbles = word(l, group, first + i);
        let mut twice = l.shl::<1>(nibbles);
        for scale in &mut all[8 * i..][..7] {
            l.store(l.mul(d, odd(l, l.and(twice, l.splat_bits(0x1e)))), scale);
            twice = l.shr::<4>(twice);
        }
        l.store(l.mul(d, odd(l, l.shr::<27>(nibbles))), &mut all[8 * i + 7]);
    }
}

/// From word `first` on, eight bytes: the one of number `SUB`.
#[inline(always)]
fn byte<L: Lanes, const BYTES: usize, const SUB: usize>(l: L, group: &Group<BYTES>, first: usize) -> L::U {
    let four = word(l, group, first + SUB / 4);
    match SUB % 4 {
        0 => l.and(four, l.splat_bits(0xff)),
        1 => l.and(l.shr::<8>(four), l.splat_bits(0xff)),
        2 => l.and(l.shr::<16>(four), l.splat_bits(0xff)),
        _ => l.shr::<24>(four),
    }
}

/// IQ1: behind eight words, eight times sixteen bits: those of number `SUB` in the lowest bits, perhaps others above.
#[inline(always)]
fn half<L: Lanes, const BYTES: usize, const SUB: usize>(l: L, group: &Group<BYTES>) -> L::U {
    let both = word(l, group, 8 + SUB / 2);
    if SUB.is_multiple_of(2) { both } else { l.shr::<16>(both) }
}

/// The lowest byte of each lane, above which is nothing, in all four of them.
#[inline(always)]
fn in_each_byte<L: Lanes>(l: L, byte: L::U) -> L::U {
    let two = l.or(byte, l.shl::<8>(byte));
    l.or(two, l.shl::<16>(two))
}

/// The signs of which each eighth makes eight of them even, and has the place of another bit.
#[inline(always)]
fn eighth_signs<L: Lanes>(l: L, word: L::U) -> L::U {
    let signs = l.and(word, l.splat_bits(0x0fff_ffff));
    let two = l.xor(signs, l.shr::<16>(signs));
    let one = l.xor(two, l.shr::<8>(two));
    l.or(signs, l.shl::<28>(l.xor(one, l.shr::<4>(one))))
}

/// The element of `table` whose index lies in two places: its lower bits are the upper ones of `indices`, the others are `rest`.
#[inline(always)]
fn gather_last<L: Lanes, const N: usize, const SHIFT: u32>(
    l: L,
    table: &[u32; N],
    indices: &[u8; 64],
    rest: L::U,
) -> L::U {
    let mut whole = [0; 64];
    l.store_bits(l.or(l.shr::<SHIFT>(l.load_bits(indices)), rest), &mut whole);
    l.gather::<N, 0>(table, &whole)
}

/// The codes of 32 elements: two indices of eleven bits and most of a third in one word, the rest of that and the fourth in
/// another.
#[inline(always)]
fn iq1_codes<L: Lanes>(l: L, low: &[u8; 64], high: L::U) -> [L::U; 8] {
    let rest = l.and(l.shr::<1>(high), l.splat_bits(0x400));
    let mut fourth = [0; 64];
    l.store_bits(high, &mut fourth);
    let found = [
        l.gather::<2048, 0>(&IQ1, low),
        l.gather::<2048, 11>(&IQ1, low),
        gather_last::<L, 2048, 22>(l, &IQ1, low, rest),
        l.gather::<2048, 0>(&IQ1, &fourth),
    ];
    both_fours(l, found)
}

/// The codes of eight elements a word, as lines of four.
#[inline(always)]
fn both_fours<L: Lanes>(l: L, [a, b, c, d]: [L::U; 4]) -> [L::U; 8] {
    [
        moved(l, a, 0, 0x03),
        moved(l, a, -4, 0x03),
        moved(l, b, 0, 0x03),
        moved(l, b, -4, 0x03),
        moved(l, c, 0, 0x03),
        moved(l, c, -4, 0x03),
        moved(l, d, 0, 0x03),
        moved(l, d, -4, 0x03),
    ]
}

/// IQ1: eight times each code, and what is added to eight elements each.
#[inline(always)]
fn shifted<L: Lanes>(l: L, [a, b, c, d, e, f, g, h]: [L::U; 8], plus: [L::U; 4]) -> [L::U; 8] {
    [
        l.add_bits(l.shl::<3>(a), plus[0]),
        l.add_bits(l.shl::<3>(b), plus[0]),
        l.add_bits(l.shl::<3>(c), plus[1]),
        l.add_bits(l.shl::<3>(d), plus[1]),
        l.add_bits(l.shl::<3>(e), plus[2]),
        l.add_bits(l.shl::<3>(f), plus[2]),
        l.add_bits(l.shl::<3>(g), plus[3]),
        l.add_bits(l.shl::<3>(h), plus[3]),
    ]
}

/// The elements of codes below 8 and of signs, of which line 2a + h has bit 4h + a of each byte. Written out, since shifts
/// are chosen when this is compiled.
#[inline(always)]
fn elements<L: Lanes>(l: L, table: &[u8; 16], [a, b, c, d, e, f, g, h]: [L::U; 8], signs: L::U) -> [L::U; 8] {
    [
        element::<L, 0>(l, table, a, signs),
        element::<L, 4>(l, table, b, signs),
        element::<L, 1>(l, table, c, signs),
        element::<L, 5>(l, table, d, signs),
        element::<L, 2>(l, table, e, signs),
        element::<L, 6>(l, table, f, signs),
        element::<L, 3>(l, table, g, signs),
        element::<L, 7>(l, table, h, signs),
    ]
}

/// One line of them, whose signs are bit `BIT` of each byte.
#[inline(always)]
fn element<L: Lanes, const BIT: isize>(l: L, table: &[u8; 16], codes: L::U, signs: L::U) -> L::U {
    l.translate(table, l.or(codes, moved(l, signs, 3 - BIT, 0x08)))
}

/// Eight codes of two bits, of which byte k has those of elements k and, four bits higher, 4 + k.
const fn eights<const N: usize>(entries: &[u16; N]) -> [u32; N] {
    let (mut words, mut i) = ([0; N], 0);
    while i < N {
        let mut k = 0;
        while k < 4 {
            let (low, high) = (entries[i] >> (2 * k) & 3, entries[i] >> (2 * k + 8) & 3);
            words[i] |= ((low | high << 4) as u32) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    words
}

/// Four codes of four bits, a byte each.
const fn fours<const N: usize>(entries: &[u16; N]) -> [u32; N] {
    let (mut words, mut i) = ([0; N], 0);
    while i < N {
        let mut k = 0;
        while k < 4 {
            words[i] |= ((entries[i] >> (4 * k) & 15) as u32) << (8 * k);
            k += 1;
        }
        i += 1;
    }
    words
}

/// 64 plus each value and, eight places further on, 64 less it.
const fn signed(values: &[u8]) -> [u8; 16] {
    let (mut table, mut i) = ([64; 16], 0);
    while i < values.len() {
        (table[i], table[8 + i]) = (64 + values[i], 64 - values[i]);
        i += 1;
    }
    table
}
