//! Super-blocks of 256 whose elements are in codebooks: an index names four or eight of them, and signs stand apart. Where the
//! bits of a block lie is how ggml defines these types.

use half::f16;
use qmesh_models::grid;

/// What is added to the elements of eight that IQ1 names, or taken from them.
const IQ1_SHIFT: f32 = 0.125;

/// An f16 scale, 32 low bytes of indices, and eight times sixteen bits: four times three high bits, a scale and a sign.
pub(super) fn iq1_s(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(50) {
        for sub in 0..8 {
            let high = word16(block, 34 + 2 * sub);
            let scale = half(block) * f32::from(2 * (high >> 12 & 7) + 1);
            for k in 0..4 {
                let index = u16::from(block[2 + 4 * sub + k]) | (high >> (3 * k) & 7) << 8;
                elements.extend(iq1(index, high >> 15 == 1).map(|x| scale * x));
            }
        }
    }
    elements
}

/// 32 low bytes of indices, sixteen bytes of two times three high bits and a sign, and four times sixteen bits: four scales of
/// three bits, and a nibble of the f16 that scales all.
pub(super) fn iq1_m(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(56) {
        let words: [u16; 4] = std::array::from_fn(|i| word16(block, 48 + 2 * i));
        let bits = (0..4).fold(0, |bits, i| bits | words[i] >> 12 << (4 * i));
        let d = f16::from_bits(bits).to_f32();
        for eight in 0..32 {
            let scale = d * f32::from(2 * (words[eight / 8] >> (3 * (eight / 2 % 4)) & 7) + 1);
            let nibble = u16::from(block[32 + eight / 2] >> (4 * (eight % 2)) & 15);
            let index = u16::from(block[eight]) | (nibble & 7) << 8;
            elements.extend(iq1(index, nibble & 8 != 0).map(|x| scale * x));
        }
    }
    elements
}

/// An f16 scale, and eight times four bytes of indices and 32 bits: four times seven signs, and a scale.
pub(super) fn iq2_xxs(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(66) {
        for sub in 0..8 {
            let signs = word32(block, 6 + 8 * sub);
            let scale = half(block) * (0.5 + (signs >> 28) as f32) * 0.25;
            for k in 0..4 {
                let eight = iq2(&grid::IQ2_XXS, usize::from(block[2 + 8 * sub + k]));
                elements.extend(signed(eight, even(signs >> (7 * k))).map(|x| scale * x));
            }
        }
    }
    elements
}

/// An f16 scale, 32 times sixteen bits (nine of an index and seven signs), and sixteen nibbles of scales.
pub(super) fn iq2_xs(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(74) {
        for eight in 0..32 {
            let code = word16(block, 2 + 2 * eight);
            let scale = half(block) * (0.5 + nibble(&block[66..], eight / 2)) * 0.25;
            let found = iq2(&grid::IQ2_XS, usize::from(code & 511));
            elements.extend(signed(found, even(u32::from(code >> 9))).map(|x| scale * x));
        }
    }
    elements
}

/// An f16 scale, 32 low bytes of indices, 32 bytes of signs, 32 pairs of high bits, and sixteen nibbles of scales.
pub(super) fn iq2_s(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(82) {
        for eight in 0..32 {
            let high = block[66 + eight / 4] >> (2 * (eight % 4)) & 3;
            let scale = half(block) * (0.5 + nibble(&block[74..], eight / 2)) * 0.25;
            let found = iq2(&grid::IQ2_S, usize::from(block[2 + eight]) | usize::from(high) << 8);
            elements.extend(signed(found, block[34 + eight]).map(|x| scale * x));
        }
    }
    elements
}

/// An f16 scale, 64 bytes of indices, and eight times 32 bits: four times seven signs, and a scale.
pub(super) fn iq3_xxs(bytes: &[u8]) -> Vec<f32> {
    let element = |code| f32::from(grid::IQ3_XXS_ELEMENTS[usize::from(code)]);
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(98) {
        for eight in 0..32 {
            let signs = word32(block, 66 + 4 * (eight / 4));
            let scale = half(block) * (0.5 + (signs >> 28) as f32) * 0.5;
            let four = |at: usize| codes::<4>(grid::IQ3_XXS[usize::from(block[2 + at])], 4).map(element);
            let found = joined(four(2 * eight), four(2 * eight + 1));
            elements.extend(signed(found, even(signs >> (7 * (eight % 4)))).map(|x| scale * x));
        }
    }
    elements
}

/// An f16 scale, 64 low bytes of indices, 64 high bits, 32 bytes of signs, and eight nibbles of scales.
pub(super) fn iq3_s(bytes: &[u8]) -> Vec<f32> {
    let mut elements = Vec::new();
    for block in bytes.chunks_exact(110) {
        for eight in 0..32 {
            let scale = half(block) * (1.0 + 2.0 * nibble(&block[106..], eight / 4));
            let four = |at: usize| {
                let high = usize::from(block[66 + at / 8] >> (at % 8) & 1);
                let codes = codes::<4>(grid::IQ3_S[usize::from(block[2 + at]) | high << 8], 4);
                codes.map(|code| f32::from(2 * code + 1))
            };
            let found = joined(four(2 * eight), four(2 * eight + 1));
            elements.extend(signed(found, block[74 + eight]).map(|x| scale * x));
        }
    }
    elements
}

fn iq1(index: u16, minus: bool) -> [f32; 8] {
    let shift = if minus { -IQ1_SHIFT } else { IQ1_SHIFT };
    codes(grid::IQ1[usize::from(index)], 2).map(|code| f32::from(code) - 1.0 + shift)
}

fn iq2(grid: &[u16], index: usize) -> [f32; 8] {
    codes(grid[index], 2).map(|code| f32::from(grid::IQ2_ELEMENTS[usize::from(code)]))
}

/// The first `N` codes of `bits` bits, the lowest first.
fn codes<const N: usize>(entry: u16, bits: usize) -> [u16; N] {
    std::array::from_fn(|k| entry >> (bits * k) & ((1 << bits) - 1))
}

fn joined(first: [f32; 4], second: [f32; 4]) -> [f32; 8] {
    std::array::from_fn(|k| if k < 4 { first[k] } else { second[k - 4] })
}

/// The elements, negative where a bit is set.
fn signed(elements: [f32; 8], signs: u8) -> [f32; 8] {
    std::array::from_fn(|k| if signs >> k & 1 == 1 { -elements[k] } else { elements[k] })
}

/// Seven signs, and the eighth, which makes the negative ones even.
fn even(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Nibble `i`, the lower one of a byte first.
fn nibble(bytes: &[u8], i: usize) -> f32 {
    f32::from(bytes[i / 2] >> (4 * (i % 2)) & 15)
}

fn half(block: &[u8]) -> f32 {
    f16::from_bits(word16(block, 0)).to_f32()
}

fn word16(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

fn word32(block: &[u8], at: usize) -> u32 {
    u32::from(word16(block, at)) | u32::from(word16(block, at + 2)) << 16
}
