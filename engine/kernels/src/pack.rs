//! From the bytes of the file to the layout of the kernels: a permutation inside groups of sixteen rows, in place.

use qmesh_arithmetic::tensor::TensorType;

use super::lanes::LANES;

/// Packs a group in place. `group` holds sixteen rows as they are in the file, one behind another, each a whole number of
/// blocks; `rows` is scratch memory.
pub(super) fn pack(dtype: TensorType, group: &mut [u8], rows: &mut Vec<u8>) {
    rows.clear();
    rows.extend_from_slice(group);
    let same = |_, word| word;
    match dtype {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => words::<4>(rows, group, None, same),
        TensorType::Q4_0 => words::<18>(rows, group, Some(0), same),
        TensorType::Q4_1 => words::<20>(rows, group, None, same),
        TensorType::Q5_0 => words::<22>(rows, group, Some(0), |i, word| if i == 0 { by_byte(word) } else { word }),
        TensorType::Q5_1 => words::<24>(rows, group, None, |i, word| if i == 1 { by_byte(word) } else { word }),
        TensorType::Q8_0 => words::<34>(rows, group, Some(0), |_, word| word ^ 0x8080_8080),
        TensorType::Q2K => words::<84>(rows, group, None, same),
        TensorType::Q3K => words::<110>(rows, group, Some(108), same),
        TensorType::Q4K => words::<144>(rows, group, None, same),
        TensorType::Q5K => words::<176>(rows, group, None, same),
        TensorType::Q6K => words::<210>(rows, group, Some(208), same),
        TensorType::IQ4NL => words::<18>(rows, group, Some(0), same),
        TensorType::IQ4XS => words::<136>(rows, group, None, same),
        TensorType::MXFP4 => words::<17>(rows, group, Some(0), same),
    }
}

/// The unit that is packed, in bytes of a row: a block, or a word of floats.
pub(super) fn unit_bytes(dtype: TensorType) -> usize {
    if dtype.block_len() == 1 { 4 } else { dtype.block_bytes() }
}

/// Word i of a block of row r becomes lane r of line i; where the words leave an f16 or a byte over, at `lone`, the sixteen
/// of them come last. `change` may turn the bits of word i.
fn words<const BYTES: usize>(rows: &[u8], group: &mut [u8], lone: Option<usize>, change: impl Fn(usize, u32) -> u32) {
    let (count, over) = (BYTES / 4, BYTES % 4);
    let first_word = if lone == Some(0) { over } else { 0 };
    let blocks = rows.len() / LANES / BYTES;
    for (at, block) in group.as_chunks_mut::<BYTES>().0.chunks_exact_mut(LANES).enumerate() {
        let packed = block.as_flattened_mut();
        for row in 0..LANES {
            let block = &rows.as_chunks::<BYTES>().0[row * blocks + at];
            let words = block[first_word..].as_chunks::<4>().0;
            for (i, word) in words[..count].iter().enumerate() {
                let word = change(i, u32::from_le_bytes(*word));
                packed[64 * i + 4 * row..][..4].copy_from_slice(&word.to_le_bytes());
            }
            if let Some(lone) = lone {
                packed[64 * count + over * row..][..over].copy_from_slice(&block[lone..lone + over]);
            }
        }
    }
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
