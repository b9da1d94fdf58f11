//! Products y = W·x: each output adds its terms serially over K, in one f32 accumulator; sixteen outputs side by side.
//!
//! A few rows take their weights straight from the packed bytes, which stream by; more rows share weights unpacked into
//! a panel that stays in the L1 cache. Both add the same terms in the same order.

mod tiles;

use std::{array::from_fn, cell::Cell, marker::PhantomData, ops::Range};

use qmesh_arithmetic::tensor::TensorType;

use self::tiles::AddPanels;
use super::{
    float::Float,
    format::{Form, Format, Group, lines, with_type},
    lanes::{Kernel, LANES, Lanes, entries},
    matrix::Matrix,
    panel::{PANEL_BLOCKS, Panel},
    quantize::{BLOCK, QuantBlock},
};

/// The right-hand side of products: rows of `cols` activations, as they are or quantised, as the matrix needs them.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Activations of a row.
    pub cols: usize,
    /// (rows, cols); may be empty where no matrix is of floats.
    pub floats: &'a [f32],
    /// (rows, cols / 32); may be empty where no matrix is quantised.
    pub blocks: &'a [QuantBlock],
}

/// Some groups of one matrix times all rows.
pub struct Product<'a> {
    /// The weights.
    pub matrix: &'a Matrix,
    /// Which groups of sixteen outputs.
    pub groups: Range<usize>,
    /// The rows.
    pub x: Inputs<'a>,
    /// (groups, rows, 16): the results take the place of whatever it holds.
    pub out: &'a mut [[f32; LANES]],
}

entries!(Product<'_> => ());

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        with_type!(self.matrix.dtype, |F| self.floats::<L, F>(l), |F, B| self.integers::<L, F, B>(l))
    }
}

impl Product<'_> {
    #[inline(always)]
    fn integers<L: Lanes, F: Format<B>, const B: usize>(self, l: L) {
        if const { F::FROM_PANELS || !L::VECTORS } {
            return l.call(Many(self));
        }
        match self.x.rows {
            1 => l.call(Few::<F, B, 1>::new(self)),
            2 => l.call(Few::<F, B, 2>::new(self)),
            ..=4 => l.call(Few::<F, B, 4>::new(self)),
            ..=8 if L::LARGE_TILES => l.call(Few::<F, B, 8>::new(self)),
            ..=12 if L::LARGE_TILES => l.call(Few::<F, B, 12>::new(self)),
            ..=16 if L::LARGE_TILES => l.call(Few::<F, B, 16>::new(self)),
            _ => l.call(Many(self)),
        }
    }

    #[inline(always)]
    fn floats<L: Lanes, F: Float>(self, l: L) {
        let rows: Vec<&[f32]> = self.x.floats.chunks_exact(self.x.cols).collect();
        let (fours, rest) = rows.as_chunks::<4>();
        for (group, out) in self.groups.clone().zip(self.out.chunks_exact_mut(rows.len())) {
            let words = self.matrix.words(group);
            let (out_fours, out_rest) = out.as_chunks_mut::<4>();
            for (x, out) in fours.iter().zip(out_fours) {
                sum_floats::<L, F, 4>(l, words, *x, out);
            }
            for (x, out) in rest.iter().zip(out_rest) {
                sum_floats::<L, F, 1>(l, words, [x], std::array::from_mut(out));
            }
        }
    }
}

/// A product of up to `R` rows; the last one stands in for those beyond it.
struct Few<'a, F, const B: usize, const R: usize> {
    product: Product<'a>,
    format: PhantomData<F>,
}

impl<'a, F: Format<B>, const B: usize, const R: usize> Few<'a, F, B, R> {
    fn new(product: Product<'a>) -> Self {
        Self { product, format: PhantomData }
    }
}

impl<F: Format<B>, const B: usize, const R: usize> Kernel for Few<'_, F, B, R> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Product { matrix, groups, x, out } = self.product;
        let (rows, blocks) = (x.rows, x.cols / BLOCK);
        let x: [&[QuantBlock]; R] = from_fn(|r| &x.blocks[r.min(rows - 1) * blocks..][..blocks]);
        for (group, out) in groups.zip(out.chunks_exact_mut(rows)) {
            let sums = sum_packed::<L, F, B, R>(l, matrix.blocks(group), x);
            out.iter_mut().zip(sums).for_each(|(out, sum)| l.store(sum, out));
        }
    }
}

thread_local! {
    /// What a thread unpacks into, product after product: filling it with zeros would take as long as a small product.
    static PANELS: Cell<Option<Box<[Panel; 2]>>> = const { Cell::new(None) };
}

/// A product of any number of rows, of any quantised type.
struct Many<'a>(Product<'a>);

impl Kernel for Many<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Product { matrix, groups, x, out } = self.0;
        let Form { len, scales, offset, minima, wide } = Form::of_type(matrix.dtype);
        let blocks = x.cols / BLOCK;
        let x_rows: Vec<&[QuantBlock]> = x.blocks.chunks_exact(blocks).collect();
        let mut panels = PANELS.take().unwrap_or_else(|| Box::new([Panel::new(), Panel::new()]));
        let mut spare = vec![[0.0; LANES]; if groups.len().is_multiple_of(2) { 0 } else { x.rows }];
        let pieces = pieces(groups.clone(), blocks, len / BLOCK, x.rows);
        let group_bytes = matrix.group_bytes();
        let packed = |group: usize, part: &Range<usize>| {
            &matrix.group(group)[group_bytes * part.start / blocks..group_bytes * part.end / blocks]
        };
        for (i, Piece { pair, part }) in pieces.iter().enumerate() {
            let next = pieces.get(i + 1);
            for (at, (group, panel)) in pair.clone().zip(&mut panels[..]).enumerate() {
                let after = next.and_then(|next| next.pair.clone().nth(at).map(|group| packed(group, &next.part)));
                panel.unpack(l, matrix.dtype, packed(group, part), after.unwrap_or_default());
            }
            let (low, rest) = out[(pair.start - groups.start) * x.rows..].split_at_mut(x.rows);
            // Where a group is left alone, the other panel's terms go nowhere.
            let high = if pair.len() == 2 { &mut rest[..x.rows] } else { &mut spare[..] };
            let (panels, x) = (&*panels, &x_rows[..]);
            macro_rules! add {
                ($scales:literal, $minima:literal, $wide:literal) => {
                    l.call(AddPanels::<$scales, $minima, $wide> { panels, x, part, offset, out: [low, high] })
                };
            }
            match (scales, minima, wide) {
                (1, false, false) => add!(1, false, false),
                (1, false, true) => add!(1, false, true),
                (1, true, _) => add!(1, true, false),
                (_, false, _) => add!(2, false, false),
                (_, true, _) => add!(2, true, false),
            }
        }
        PANELS.set(Some(panels));
    }
}

/// How far ahead of their use bytes are asked for: far enough for memory, near enough to stay in the L2 cache.
const AHEAD: usize = 8192;

/// Up to so many rows, the code of a block's eight times 32 elements is written out.
const fn unrolled_rows(scales: usize) -> usize {
    // With two scales, that of more rows would be too much to be inlined.
    if scales == 1 { 8 } else { 4 }
}

/// Up to so many rows, a loop over them is unrolled by the compiler.
const LOOPED_ROWS: usize = 4;

/// The sums of one group's terms for `R` rows.
#[inline(always)]
fn sum_packed<L: Lanes, F: Format<B>, const B: usize, const R: usize>(
    l: L,
    groups: &[Group<B>],
    x: [&[QuantBlock]; R],
) -> [L::F; R] {
    let mut sums = [l.splat(0.0); R];
    let (mut scales, mut minima) = ([[0.0; LANES]; 16], [[0.0; LANES]; 16]);
    let subs = F::LEN / BLOCK;
    for (at, group) in groups.iter().enumerate() {
        let ahead = group.as_ptr().cast::<u8>().wrapping_add(AHEAD);
        F::scales(l, group, &mut scales, &mut minima);
        let x: [&[QuantBlock]; R] = x.map(|x| &x[at * subs..][..subs]);
        macro_rules! sub {
            ($sub:expr, $lines:expr) => {
                // A few lines at a time: memory works while the rows are computed.
                let [from, to] = [$sub, $sub + 1].map(|sub| (LANES * B * sub / subs).next_multiple_of(64));
                prefetch(l, ahead.wrapping_add(from), ahead.wrapping_add(to));
                let lines = $lines;
                let scales = &scales[$sub * F::SCALES..][..F::SCALES];
                let minima = &minima[$sub * F::SCALES..][..F::SCALES];
                if const { R > LOOPED_ROWS } {
                    add_rows::<L, F, B, R>(l, lines, [scales, minima], &x, $sub, &mut sums);
                } else {
                    for r in 0..R {
                        sums[r] = add_block::<L, F, B>(l, lines, scales, minima, &x[r][$sub], sums[r]);
                    }
                }
            };
        }
        // With many rows to do for each, finding out which 32 come next costs nothing; else they are told apart here.
        if const { R > unrolled_rows(F::SCALES) } {
            for sub in 0..subs {
                sub!(sub, lines::<L, F, B>(l, group, sub));
            }
        } else {
            macro_rules! each {
                ($($sub:literal)*) => { $(if const { $sub < F::LEN / BLOCK } {
                    sub!($sub, F::lines::<L, $sub>(l, group));
                })* };
            }
            each!(0 1 2 3 4 5 6 7);
        }
    }
    sums
}

/// The terms of 32 elements of many rows, which are written out: a loop over them would not be unrolled, and their sums would be in
/// memory instead of registers.
#[inline(always)]
fn add_rows<L: Lanes, F: Format<B>, const B: usize, const R: usize>(
    l: L,
    lines: [L::U; 8],
    [scales, minima]: [&[[f32; LANES]]; 2],
    x: &[&[QuantBlock]; R],
    sub: usize,
    sums: &mut [L::F; R],
) {
    macro_rules! rows {
        ($($r:literal)*) => { $(if const { $r < R } {
            sums[$r] = add_block::<L, F, B>(l, lines, scales, minima, &x[$r][sub], sums[$r]);
        })* };
    }
    rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// One row's terms of 32 elements.
#[inline(always)]
fn add_block<L: Lanes, F: Format<B>, const B: usize>(
    l: L,
    lines: [L::U; 8],
    scales: &[[f32; LANES]],
    minima: &[[f32; LANES]],
    x: &QuantBlock,
    mut sum: L::F,
) -> L::F {
    let count = 8 / F::SCALES;
    for (part, (scale, minimum)) in scales.iter().zip(minima).enumerate() {
        let mut dots = [l.splat_bits(x.offset(F::SCALES, F::OFFSET, part)), l.splat_bits(0)];
        for i in count * part..count * (part + 1) {
            let a = l.splat_bits(u32::from_le_bytes(x.words[i]));
            dots[i % 2] = if F::WIDE {
                l.dot::<true>(dots[i % 2], lines[i], a)
            } else {
                l.dot::<false>(dots[i % 2], lines[i], a)
            };
        }
        let dot = l.to_float(l.add_bits(dots[0], dots[1]));
        sum = l.fma(l.mul(l.load(scale), l.splat(x.scale)), dot, sum);
        if F::MINIMA {
            sum = l.fma(l.load(minimum), l.splat(x.part_sum(F::SCALES, part)), sum);
        }
    }
    sum
}

/// What is unpacked at a time: up to two groups, and some of their blocks of 32.
struct Piece {
    pair: Range<usize>,
    part: Range<usize>,
}

/// The pieces of `groups`, in the order of their bytes where few rows wait for them; with many rows, which would not
/// stay in the cache whole, the same columns of all groups one after the other. Parts are about equal, and whole
/// multiples of `unit` blocks.
fn pieces(groups: Range<usize>, blocks: usize, unit: usize, rows: usize) -> Vec<Piece> {
    const MANY: usize = 64;
    let part = blocks.div_ceil(blocks.div_ceil(PANEL_BLOCKS)).next_multiple_of(unit);
    let pairs = groups.clone().step_by(2).map(|first| first..groups.end.min(first + 2));
    let parts = (0..blocks).step_by(part).map(|first| first..blocks.min(first + part));
    if rows < MANY {
        let pieces = pairs.flat_map(|pair| parts.clone().map(move |part| Piece { pair: pair.clone(), part }));
        pieces.collect()
    } else {
        let pieces = parts.flat_map(|part| pairs.clone().map(move |pair| Piece { pair, part: part.clone() }));
        pieces.collect()
    }
}

/// The sums of one group of floats for `R` rows.
#[inline(always)]
fn sum_floats<L: Lanes, F: Float, const R: usize>(
    l: L,
    words: &[[u8; 64]],
    x: [&[f32]; R],
    out: &mut [[f32; LANES]; R],
) {
    let mut sums = [l.splat(0.0); R];
    for (i, word) in words.iter().enumerate() {
        l.prefetch(word.as_ptr().wrapping_add(AHEAD));
        let word = l.load_bits(word);
        for part in 0..F::PER_WORD {
            let w = if part == 0 { F::first(l, word) } else { F::second(l, word) };
            for r in 0..R {
                sums[r] = l.fma(w, l.splat(x[r][F::PER_WORD * i + part]), sums[r]);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        l.store(sum, out);
    }
}

#[inline(always)]
fn prefetch<L: Lanes>(l: L, from: *const u8, to: *const u8) {
    let mut at = from;
    while at < to {
        l.prefetch(at);
        at = at.wrapping_add(64);
    }
}
