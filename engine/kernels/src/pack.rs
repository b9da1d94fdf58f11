//! From the bytes of the file to the layout of the kernels: a permutation inside groups of sixteen rows, in place.

mod codes;

use qmesh_arithmetic::tensor::TensorType;

use super::lanes::LANES;

/// Packs a group in place. `group` holds sixteen rows as they are in the file, one behind another, each a whole number of
/// blocks; `rows` is scratch memory.
pub(super) fn pack(dtype: TensorType, group: &mut [u8], rows: &mut Vec<u8>) {
    rows.clear();
    rows.extend_from_slice(group);
    match dtype {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => words::<4>(rows, group, None, word),
        TensorType::Q4_0 => words::<18>(rows, group, Some(0), word),
        TensorType::Q4_1 => words::<20>(rows, group, None, word),
        TensorType::Q5_0 => words::<22>(rows, group, Some(0), fifth_bits::<0>),
        TensorType::Q5_1 => words::<24>(rows, group, None, fifth_bits::<1>),
        TensorType::Q8_0 => words::<34>(rows, group, Some(0), |words, i| word(words, i) ^ 0x8080_8080),
        TensorType::Q2K => words::<84>(rows, group, None, word),
        TensorType::Q3K => words::<110>(rows, group, Some(108), word),
        TensorType::Q4K => words::<144>(rows, group, None, word),
        TensorType::Q5K => words::<176>(rows, group, None, word),
        TensorType::Q6K => words::<210>(rows, group, Some(208), word),
        TensorType::IQ4NL => words::<18>(rows, group, Some(0), word),
        TensorType::IQ4XS => words::<136>(rows, group, None, word),
        TensorType::MXFP4 => words::<17>(rows, group, Some(0), word),
        TensorType::IQ1S => words::<50>(rows, group, Some(0), codes::iq1_s),
        TensorType::IQ1M => words::<56>(rows, group, None, codes::iq1_m),
        TensorType::IQ2XXS => words::<66>(rows, group, Some(0), codes::iq2_xxs),
        TensorType::IQ2XS => words::<74>(rows, group, Some(0), codes::iq2_xs),
        TensorType::IQ2S => words::<82>(rows, group, Some(0), codes::iq2_s),
        TensorType::IQ3XXS => words::<98>(rows, group, Some(0), codes::iq3_xxs),
        TensorType::IQ3S => words::<110>(rows, group, Some(0), codes::iq3_s),
        TensorType::NVFP4 => words::<36>(rows, group, None, codes::nvfp4),
        TensorType::TQ1_0 => words::<54>(rows, group, Some(52), word),
        TensorType::TQ2_0 => words::<66>(rows, group, Some(64), word),
        TensorType::Q1_0 => words::<18>(rows, group, Some(0), |words, i| by_byte(word(words, i))),
        TensorType::Q2_0 => words::<18>(rows, group, Some(0), |words, i| codes::pairs(word(words, i))),
    }
}

/// The unit that is packed, in bytes of a row: a block, or a word of floats.
pub(super) fn unit_bytes(dtype: TensorType) -> usize {
    if dtype.block_len() == 1 { 4 } else { dtype.block_bytes() }
}

/// Word i of a block of row r becomes lane r of line i; where the words leave an f16 or a byte over, at `lone`, the sixteen
/// of them come last. `change` says what word i of a block becomes.
fn words<const BYTES: usize>(
    rows: &[u8],
    group: &mut [u8],
    lone: Option<usize>,
    change: impl Fn(&[[u8; 4]], usize) -> u32,
) {
    let (count, over) = (BYTES / 4, BYTES % 4);
    let first_word = if lone == Some(0) { over } else { 0 };
    let blocks = rows.len() / LANES / BYTES;
    for (at, block) in group.as_chunks_mut::<BYTES>().0.chunks_exact_mut(LANES).enumerate() {
        let packed = block.as_flattened_mut();
        for row in 0..LANES {
            let block = &rows.as_chunks::<BYTES>().0[row * blocks + at];
            let words = block[first_word..].as_chunks::<4>().0;
            for i in 0..count {
                packed[64 * i + 4 * row..][..4].copy_from_slice(&change(&words[..count], i).to_le_bytes());
            }
            if let Some(lone) = lone {
                packed[64 * count + over * row..][..over].copy_from_slice(&block[lone..lone + over]);
            }
        }
    }
}

/// Word `i` as it is.
fn word(words: &[[u8; 4]], i: usize) -> u32 {
    u32::from_le_bytes(words[i])
}

/// Word `AT` holds the fifth bits.
fn fifth_bits<const AT: usize>(words: &[[u8; 4]], i: usize) -> u32 {
    if i == AT { by_byte(word(words, i)) } else { word(words, i) }
}

/// Bit 4j + b becomes bit j of byte b: where the fifth bits of four neighbours lie in different bytes, one shift serves all.
const fn by_byte(word: u32) -> u32 {
    let (mut turned, mut j) = (0, 0);
    while j < 8 {
        // Four bits times 1 + 2^7 + 2^14 + 2^21: bit b lands, without a carry, at the bottom of byte b.
        turned |= (((word >> (4 * j) & 0xf) * 0x0020_4081) & 0x0101_0101) << j;
        j += 1;
    }
    turned
}

/// Every bit goes where it should.
const _: () = {
    let mut bit = 0;
    while bit < 32 {
        assert!(by_byte(1 << bit) == 1 << (8 * (bit % 4) + bit / 4));
        bit += 1;
    }
};
