//! How words of the IQ types and of types with single bits are turned when they are packed, so that unpacking them takes few
//! steps. Bits change places, and nothing else: a block stays as long as it is.

use super::word;

/// A word of 32 signs, a byte each for eight neighbours: bit 8·a + 4·h + b becomes bit 8·b + 4·h + a. So the signs of
/// elements 8a + 4h to 8a + 4h + 3 are the same bit of the four bytes.
pub(super) const fn signs(word: u32) -> u32 {
    exchanged(exchanged(word, 7, 0x00aa_00aa), 14, 0x0000_cccc)
}

/// A word of four times seven signs and four other bits, which stay the highest. The eighth sign makes each eight even, and
/// these four bits have the places of the last ones.
pub(super) const fn seven_signs(word: u32) -> u32 {
    let eights = word & 0x7f | (word & 0x3f80) << 1 | (word & 0x1f_c000) << 2 | (word & 0x0fe0_0000) << 3;
    signs(eights) | word & 0xf000_0000
}

/// A word of sixteen pairs of bits, four neighbours a byte: pair b of byte i becomes pair i of byte b.
pub(super) const fn pairs(word: u32) -> u32 {
    exchanged(exchanged(word, 6, 0x00cc_00cc), 12, 0x0000_f0f0)
}

/// The bits of `mask` exchange places with those `by` higher.
const fn exchanged(word: u32, by: u32, mask: u32) -> u32 {
    let differ = (word ^ word >> by) & mask;
    word ^ differ ^ differ << by
}

pub(super) fn iq2_xxs(words: &[[u8; 4]], i: usize) -> u32 {
    if i % 2 == 1 { seven_signs(word(words, i)) } else { word(words, i) }
}

pub(super) fn iq3_xxs(words: &[[u8; 4]], i: usize) -> u32 {
    if i < 16 { word(words, i) } else { seven_signs(word(words, i)) }
}

/// Of each 32 elements, a word of indices of nine bits, and one of signs, in whose highest bits are the rest of the indices.
pub(super) fn iq2_xs(words: &[[u8; 4]], i: usize) -> u32 {
    if i >= 16 {
        return word(words, i);
    }
    let both = [word(words, i & !1), word(words, i | 1)];
    let codes = [both[0] & 0xffff, both[0] >> 16, both[1] & 0xffff, both[1] >> 16];
    if i.is_multiple_of(2) {
        indices(codes.map(|code| code & 511), 9)
    } else {
        let [a, b, c, d] = codes.map(|code| code >> 9);
        seven_signs(a | b << 7 | c << 14 | d << 21 | (codes[3] & 511) >> 5 << 28)
    }
}

/// A word of indices of ten bits, whose rest takes the places of the bits that they had apart.
pub(super) fn iq2_s(words: &[[u8; 4]], i: usize) -> u32 {
    let index = |sub: usize, k: usize| {
        let high = words[16 + sub / 4][sub % 4] >> (2 * k) & 3;
        u32::from(words[sub][k]) | u32::from(high) << 8
    };
    match i {
        ..8 => indices(std::array::from_fn(|k| index(i, k)), 10),
        8..16 => signs(word(words, i)),
        16 | 17 => u32::from_le_bytes(std::array::from_fn(|k| (index(4 * (i - 16) + k, 3) >> 2) as u8)),
        _ => word(words, i),
    }
}

/// Two words of indices of nine bits; the rest of both takes the places of the bits that they had apart.
pub(super) fn iq3_s(words: &[[u8; 4]], i: usize) -> u32 {
    let index = |sub: usize, k: usize| {
        let high = words[16 + sub / 4][sub % 4] >> k & 1;
        u32::from(words[2 * sub + k / 4][k % 4]) | u32::from(high) << 8
    };
    match i {
        ..16 => indices(std::array::from_fn(|k| index(i / 2, 4 * (i % 2) + k)), 9),
        16 | 17 => u32::from_le_bytes(std::array::from_fn(|k| {
            let sub = 4 * (i - 16) + k;
            (index(sub, 3) >> 5 | index(sub, 7) >> 5 << 4) as u8
        })),
        18..26 => signs(word(words, i)),
        _ => word(words, i),
    }
}

/// A word of indices of eleven bits, the last of the third and all of the fourth where they had bits apart, and the four
/// bits above these as they are.
pub(super) fn iq1_s(words: &[[u8; 4]], i: usize) -> u32 {
    let half = |sub: usize| word(words, 8 + sub / 2) >> (16 * (sub % 2)) & 0xffff;
    let index = |sub: usize, k: usize| u32::from(words[sub][k]) | (half(sub) >> (3 * k) & 7) << 8;
    iq1(i, index, |sub| half(sub) >> 12).unwrap_or_else(|| word(words, i))
}

/// As IQ1_S; above the indices are the signs of their shifts.
pub(super) fn iq1_m(words: &[[u8; 4]], i: usize) -> u32 {
    let nibble = |sub: usize, k: usize| word(words, 8 + sub / 2) >> (16 * (sub % 2) + 4 * k) & 0xf;
    let index = |sub: usize, k: usize| u32::from(words[sub][k]) | (nibble(sub, k) & 7) << 8;
    let shifts = |sub: usize| (0..4).fold(0, |shifts, k| shifts | nibble(sub, k) >> 3 << k);
    iq1(i, index, shifts).unwrap_or_else(|| word(words, i))
}

fn iq1(i: usize, index: impl Fn(usize, usize) -> u32, above: impl Fn(usize) -> u32) -> Option<u32> {
    let half = |sub: usize| index(sub, 3) | index(sub, 2) >> 10 << 11 | above(sub) << 12;
    match i {
        ..8 => Some(indices(std::array::from_fn(|k| index(i, k)), 11)),
        8..12 => Some(half(2 * (i - 8)) | half(2 * (i - 8) + 1) << 16),
        _ => None,
    }
}

/// Indices of `bits` bits, one above the other, as far as they fit.
fn indices(codes: [u32; 4], bits: u32) -> u32 {
    (0..).zip(codes).fold(0, |word, (k, code)| if bits * k < 32 { word | code << (bits * k) } else { word })
}

/// Scales of NVFP4, unsigned floats of four bits of exponent and three of mantissa: what is no number counts as zero.
pub(super) fn nvfp4(words: &[[u8; 4]], i: usize) -> u32 {
    if i == 0 {
        u32::from_le_bytes(words[0].map(|scale| if scale == 0x7f { 0 } else { scale }))
    } else {
        word(words, i)
    }
}

/// Every bit goes where it should.
const _: () = {
    let mut bit = 0;
    while bit < 32 {
        assert!(signs(1 << bit) == 1 << (8 * (bit % 4) + (bit & 4) + bit / 8));
        assert!(pairs(1 << bit) == 1 << (8 * (bit / 2 % 4) + 2 * (bit / 8) + bit % 2));
        bit += 1;
    }
};
