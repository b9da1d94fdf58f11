//! The quantised block formats of GGUF: how sixteen packed rows become lines of unsigned bytes, and scales.
//!
//! A group's block holds, word by word of the file's block, that word of each of the sixteen rows: lane = row. Where the
//! file's block has a lone f16 or byte besides its words, the sixteen of them come last. `pack` makes it so.

mod bits;
mod grid;
mod k;
mod plain;
mod table;

pub(super) use self::{
    bits::{Q1_0, Q2_0, TQ1_0, TQ2_0},
    grid::{IQ1M, IQ1S, IQ2S, IQ2XS, IQ2XXS, IQ3S, IQ3XXS},
    k::{Q2K, Q3K, Q4K, Q5K, Q6K},
    plain::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0},
    table::{IQ4NL, IQ4XS, MXFP4, NVFP4},
};
use qmesh_arithmetic::tensor::TensorType;

use super::lanes::{LANES, Lanes};

/// A quantised format: weight = scale · (q − `OFFSET`) + minimum, with q in 0..=255. `BYTES` is a block's size in the
/// file.
pub(super) trait Format<const BYTES: usize> {
    /// Elements per block of the file.
    const LEN: usize;
    /// Scales per 32 elements, and minima where there are any.
    const SCALES: usize = 1;
    /// What is subtracted from q.
    const OFFSET: i32 = 0;
    /// Whether there are minima.
    const MINIMA: bool = false;
    /// Whether q may exceed 127: only where it is offset by 128.
    const WIDE: bool = Self::OFFSET == 128;

    /// Whether unpacking takes so long that few rows, too, have their weights from panels.
    const FROM_PANELS: bool = false;

    /// The scales of a group's block, and its minima if the format has any, in the order of their elements.
    fn scales<L: Lanes>(l: L, group: &Group<BYTES>, scales: &mut [[f32; LANES]], minima: &mut [[f32; LANES]]);

    /// The 32 elements number `SUB` of a group's block: line i holds q of elements 4i to 4i + 3 of each row.
    fn lines<L: Lanes, const SUB: usize>(l: L, group: &Group<BYTES>) -> [L::U; 8];
}

/// What of a format is no part of its code.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// [`Format::LEN`]
    pub len: usize,
    /// [`Format::SCALES`]
    pub scales: usize,
    /// [`Format::OFFSET`]
    pub offset: i32,
    /// [`Format::MINIMA`]
    pub minima: bool,
    /// [`Format::WIDE`]
    pub wide: bool,
}

impl Form {
    /// That of `F`.
    pub(crate) const fn of<F: Format<BYTES>, const BYTES: usize>() -> Self {
        const { assert!(!F::MINIMA || F::OFFSET == 0, "what a format subtracts is a minimum or an offset") };
        Self { len: F::LEN, scales: F::SCALES, offset: F::OFFSET, minima: F::MINIMA, wide: F::WIDE }
    }

    /// That of a quantised type.
    pub(crate) fn of_type(dtype: TensorType) -> Self {
        with_format!(dtype, |F, B| Self::of::<F, B>())
    }
}

/// Evaluates an expression with what computes a type as a type of this name: a [`Float`](super::float::Float), or a
/// [`Format`] and, as a constant, its bytes.
macro_rules! with_type {
    ($dtype:expr, |$float:ident| $floats:expr, |$format:ident, $bytes:ident| $blocks:expr) => {
        $crate::format::with_type!(@each $dtype, [F32, F16, BF16], |$float| $floats, [
            Q4_0 18, Q4_1 20, Q5_0 22, Q5_1 24, Q8_0 34, Q2K 84, Q3K 110, Q4K 144, Q5K 176, Q6K 210, IQ4NL 18,
            IQ4XS 136, MXFP4 17, IQ1S 50, IQ1M 56, IQ2XXS 66, IQ2XS 74, IQ2S 82, IQ3XXS 98, IQ3S 110, NVFP4 36,
            TQ1_0 54, TQ2_0 66, Q1_0 18, Q2_0 18
        ], |$format, $bytes| $blocks)
    };
    (@each $dtype:expr, [$($real:ident),+], |$float:ident| $floats:expr, [$($name:ident $size:literal),+],
     |$format:ident, $bytes:ident| $blocks:expr) => {
        match $dtype {
            $(TensorType::$real => {
                type $float = $crate::float::$real;
                $floats
            })+
            $(TensorType::$name => {
                type $format = $crate::format::$name;
                const $bytes: usize = $size;
                $blocks
            })+
        }
    };
}

/// As [`with_type`], where a type is known to be quantised.
macro_rules! with_format {
    ($dtype:expr, |$format:ident, $bytes:ident| $blocks:expr) => {
        $crate::format::with_type!($dtype, |_Real| unreachable!("floats are not quantised"), |$format, $bytes| $blocks)
    };
}

pub(super) use {with_format, with_type};

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

/// Word `i` of the block, of all sixteen rows.
#[inline(always)]
fn word<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>, i: usize) -> L::U {
    l.load_bits(line(group, i))
}

/// Its bytes.
#[inline(always)]
fn line<const BYTES: usize>(group: &Group<BYTES>, i: usize) -> &[u8; 64] {
    group.as_flattened()[64 * i..].first_chunk().expect("the word lies inside the block")
}

/// The f16 after the words, of all sixteen rows.
#[inline(always)]
fn last_halves<L: Lanes, const BYTES: usize>(l: L, group: &Group<BYTES>) -> L::F {
    l.load_half_bytes(group.as_flattened().last_chunk().expect("blocks are longer than an f16"))
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

#[inline(always)]
fn low_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(line, l.splat_bits(0x0f0f_0f0f))
}

#[inline(always)]
fn high_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(l.shr::<4>(line), l.splat_bits(0x0f0f_0f0f))
}

/// `x` shifted left by `left` bits (right where that is negative), of which each byte keeps those of `mask`.
#[inline(always)]
fn moved<L: Lanes>(l: L, x: L::U, left: isize, mask: u8) -> L::U {
    let moved = match left {
        4 => l.shl::<4>(x),
        3 => l.shl::<3>(x),
        2 => l.shl::<2>(x),
        1 => l.shl::<1>(x),
        0 => x,
        -1 => l.shr::<1>(x),
        -2 => l.shr::<2>(x),
        -3 => l.shr::<3>(x),
        -4 => l.shr::<4>(x),
        -5 => l.shr::<5>(x),
        _ => l.shr::<6>(x),
    };
    l.and(moved, l.splat_bits(u32::from_ne_bytes([mask; 4])))
}
