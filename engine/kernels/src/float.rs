//! The float formats of GGUF: how packed words, one of each of sixteen rows, become columns of f32.

use super::lanes::Lanes;

/// A float format.
pub(super) trait Float {
    /// Elements of a row in a word.
    const PER_WORD: usize;

    /// The first element of each row.
    fn first<L: Lanes>(l: L, word: L::U) -> L::F;
    /// The second one, where there are two.
    fn second<L: Lanes>(l: L, word: L::U) -> L::F;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Float for F32 {
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn first<L: Lanes>(l: L, word: L::U) -> L::F {
        l.of_bits(word)
    }

    #[inline(always)]
    fn second<L: Lanes>(l: L, word: L::U) -> L::F {
        l.of_bits(word)
    }
}

impl Float for F16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn first<L: Lanes>(l: L, word: L::U) -> L::F {
        l.widen_half(word)
    }

    #[inline(always)]
    fn second<L: Lanes>(l: L, word: L::U) -> L::F {
        l.widen_half(l.shr::<16>(word))
    }
}

impl Float for BF16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn first<L: Lanes>(l: L, word: L::U) -> L::F {
        l.of_bits(l.shl::<16>(word))
    }

    #[inline(always)]
    fn second<L: Lanes>(l: L, word: L::U) -> L::F {
        l.of_bits(l.and(word, l.splat_bits(0xffff_0000)))
    }
}
