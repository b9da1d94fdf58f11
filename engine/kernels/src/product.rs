//! Products y = W·x: each output adds its terms serially over K, in one f32 accumulator; sixteen outputs side by side.
//!
//! A few rows take their weights straight from the packed bytes, which stream by; more rows share weights unpacked into
//! a panel that stays in the L1 cache. Both add the same terms in the same order.

use std::{array::from_fn, marker::PhantomData, ops::Range};

use qmesh_arithmetic::tensor::TensorType;

use super::{
    float::{BF16, F16, F32, Float},
    format::{Format, Group, IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, lines},
    lanes::{Kernel, LANES, Lanes, entries},
    matrix::Matrix,
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
    /// (groups, rows, 16), zeros; the results are added to it.
    pub out: &'a mut [[f32; LANES]],
}

entries!(Product<'_> => ());

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        match self.matrix.dtype {
            TensorType::F32 => self.floats::<L, F32>(l),
            TensorType::F16 => self.floats::<L, F16>(l),
            TensorType::BF16 => self.floats::<L, BF16>(l),
            TensorType::Q4_0 => self.integers::<L, Q4_0, 18>(l),
            TensorType::Q4_1 => self.integers::<L, Q4_1, 20>(l),
            TensorType::Q5_0 => self.integers::<L, Q5_0, 22>(l),
            TensorType::Q5_1 => self.integers::<L, Q5_1, 24>(l),
            TensorType::Q8_0 => self.integers::<L, Q8_0, 34>(l),
            TensorType::Q2K => self.integers::<L, Q2K, 84>(l),
            TensorType::Q3K => self.integers::<L, Q3K, 110>(l),
            TensorType::Q4K => self.integers::<L, Q4K, 144>(l),
            TensorType::Q5K => self.integers::<L, Q5K, 176>(l),
            TensorType::Q6K => self.integers::<L, Q6K, 210>(l),
            TensorType::IQ4NL => self.integers::<L, IQ4NL, 18>(l),
            TensorType::IQ4XS => self.integers::<L, IQ4XS, 136>(l),
            TensorType::MXFP4 => self.integers::<L, MXFP4, 17>(l),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn integers<L: Lanes, F: Format<B>, const B: usize>(self, l: L) {
        match self.x.rows {
            1 => l.call(Few::<F, B, 1>::new(self)),
            2 if L::VECTORS => l.call(Few::<F, B, 2>::new(self)),
            ..=4 if L::VECTORS => l.call(Few::<F, B, 4>::new(self)),
            ..=8 if L::LARGE_TILES => l.call(Few::<F, B, 8>::new(self)),
            ..=12 if L::LARGE_TILES => l.call(Few::<F, B, 12>::new(self)),
            ..=16 if L::LARGE_TILES => l.call(Few::<F, B, 16>::new(self)),
            _ => l.call(Many::<F, B>::new(self)),
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
                add_floats::<L, F, 4>(l, words, *x, out);
            }
            for (x, out) in rest.iter().zip(out_rest) {
                add_floats::<L, F, 1>(l, words, [x], std::array::from_mut(out));
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
            let mut sums = [[0.0; LANES]; R];
            sums[..rows].copy_from_slice(out);
            add_packed::<L, F, B, R>(l, matrix.blocks(group), x, &mut sums);
            out.copy_from_slice(&sums[..rows]);
        }
    }
}

/// A product of any number of rows.
struct Many<'a, F, const B: usize> {
    product: Product<'a>,
    format: PhantomData<F>,
}

impl<'a, F: Format<B>, const B: usize> Many<'a, F, B> {
    fn new(product: Product<'a>) -> Self {
        Self { product, format: PhantomData }
    }
}

impl<F: Format<B>, const B: usize> Kernel for Many<'_, F, B> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Product { matrix, groups, x, out } = self.product;
        let blocks = x.cols / BLOCK;
        let x_rows: Vec<&[QuantBlock]> = x.blocks.chunks_exact(blocks).collect();
        let mut panels = [Panel::new(), Panel::new()];
        let mut spare = vec![[0.0; LANES]; if groups.len().is_multiple_of(2) { 0 } else { x.rows }];
        let pieces = pieces(groups.clone(), blocks, F::LEN / BLOCK, x.rows);
        let packed = |group: usize, part: &Range<usize>| {
            &matrix.blocks::<B>(group)[part.start * BLOCK / F::LEN..part.end * BLOCK / F::LEN]
        };
        for (i, Piece { pair, part }) in pieces.iter().enumerate() {
            for (group, panel) in pair.clone().zip(&mut panels) {
                panel.unpack::<L, F, B>(l, packed(group, part));
            }
            let next = pieces.get(i + 1).into_iter().flat_map(|next| next.pair.clone().map(|g| packed(g, &next.part)));
            next.for_each(|bytes| prefetch(l, bytes.as_ptr_range().start.cast(), bytes.as_ptr_range().end.cast()));
            let (low, rest) = out[(pair.start - groups.start) * x.rows..].split_at_mut(x.rows);
            // Where a group is left alone, the other panel's terms go nowhere.
            let high = if pair.len() == 2 { &mut rest[..x.rows] } else { &mut spare[..] };
            let (panels, x, offset) = (&panels, &x_rows[..], F::OFFSET);
            macro_rules! add {
                ($scales:literal, $minima:literal, $wide:literal) => {
                    l.call(AddPanels::<$scales, $minima, $wide> { panels, x, part, offset, out: [low, high] })
                };
            }
            match (F::SCALES, F::MINIMA, F::WIDE) {
                (1, false, false) => add!(1, false, false),
                (1, false, true) => add!(1, false, true),
                (1, true, _) => add!(1, true, false),
                (_, false, _) => add!(2, false, false),
                (_, true, _) => add!(2, true, false),
            }
        }
    }
}

/// How far ahead of their use bytes are asked for: far enough for memory, near enough to stay in the L2 cache.
const AHEAD: usize = 8192;

/// Up to so many rows, the code of a block's eight times 32 elements is written out.
const UNROLLED_ROWS: usize = 4;

/// Adds the terms of one group for `R` rows to `out`.
#[inline(always)]
fn add_packed<L: Lanes, F: Format<B>, const B: usize, const R: usize>(
    l: L,
    groups: &[Group<B>],
    x: [&[QuantBlock]; R],
    out: &mut [[f32; LANES]; R],
) {
    let mut sums = [l.splat(0.0); R];
    for r in 0..R {
        sums[r] = l.load(&out[r]);
    }
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
                for r in 0..R {
                    sums[r] = add_block::<L, F, B>(l, lines, scales, minima, &x[r][$sub], sums[r]);
                }
            };
        }
        // With many rows to do for each, finding out which 32 come next costs nothing; else they are told apart here.
        if const { R > UNROLLED_ROWS } {
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
    for (out, sum) in out.iter_mut().zip(sums) {
        l.store(sum, out);
    }
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

/// Blocks of 32 that a panel holds: two panels of 768 values of K fill three quarters of the L1 cache.
const PANEL_BLOCKS: usize = 24;

/// Sixteen rows of weights, unpacked: lane = row.
#[repr(align(64))]
struct Panel {
    /// Four K of sixteen rows each; eight lines a block of 32.
    lines: [[[u8; 64]; 8]; PANEL_BLOCKS],
    /// One line a scale, `Format::SCALES` a block.
    scales: [[f32; LANES]; 2 * PANEL_BLOCKS],
    /// As many, of formats that have minima.
    minima: [[f32; LANES]; 2 * PANEL_BLOCKS],
}

impl Panel {
    fn new() -> Self {
        Self { lines: [[[0; 64]; 8]; _], scales: [[0.0; LANES]; _], minima: [[0.0; LANES]; _] }
    }

    #[inline(always)]
    fn unpack<L: Lanes, F: Format<B>, const B: usize>(&mut self, l: L, groups: &[Group<B>]) {
        let subs = F::LEN / BLOCK;
        for (at, group) in groups.iter().enumerate() {
            let first = at * subs;
            F::scales(l, group, &mut self.scales[first * F::SCALES..], &mut self.minima[first * F::SCALES..]);
            for sub in 0..subs {
                for (line, to) in lines::<L, F, B>(l, group, sub).into_iter().zip(&mut self.lines[first + sub]) {
                    l.store_bits(line, to);
                }
            }
        }
    }
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

/// Adds the panels' terms to all rows of two groups. What it does depends on a format's scales, minima and highest bit,
/// but no further on the format, so that several share it.
struct AddPanels<'a, const SCALES: usize, const MINIMA: bool, const WIDE: bool> {
    panels: &'a [Panel; 2],
    x: &'a [&'a [QuantBlock]],
    /// Blocks of the rows that the panels hold.
    part: &'a Range<usize>,
    /// [`Format::OFFSET`]
    offset: i32,
    /// (rows) of each group.
    out: [&'a mut [[f32; LANES]]; 2],
}

impl<const SCALES: usize, const MINIMA: bool, const WIDE: bool> Kernel for AddPanels<'_, SCALES, MINIMA, WIDE> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        let (sixes, rest) = if L::LARGE_TILES { self.x.as_chunks::<6>() } else { (&[][..], self.x) };
        let (pairs, rest) = rest.as_chunks::<2>();
        let mut row = 0;
        for x in sixes {
            self.tile(l, x, row);
            row += 6;
        }
        for x in pairs {
            self.tile(l, x, row);
            row += 2;
        }
        for x in rest {
            self.tile(l, &[*x], row);
            row += 1;
        }
    }
}

impl<const SCALES: usize, const MINIMA: bool, const WIDE: bool> AddPanels<'_, SCALES, MINIMA, WIDE> {
    /// Adds the panels' terms for the `R` rows from `row` on.
    #[allow(clippy::needless_range_loop, reason = "a block is one of the rows' and one of the panels'")]
    #[inline(always)]
    fn tile<L: Lanes, const R: usize>(&mut self, l: L, x: &[&[QuantBlock]; R], row: usize) {
        let Self { panels, part, offset, out, .. } = self;
        let x: [&[QuantBlock]; R] = from_fn(|r| &x[r][part.clone()]);
        let mut sums = [[l.splat(0.0); 2]; R];
        for r in 0..R {
            sums[r] = [l.load(&out[0][row + r]), l.load(&out[1][row + r])];
        }
        let count = 8 / SCALES;
        for block in 0..part.len() {
            for part in 0..SCALES {
                let mut dots = [[l.splat_bits(0); 2]; R];
                for r in 0..R {
                    dots[r] = [l.splat_bits(x[r][block].offset(SCALES, *offset, part)); 2];
                }
                for i in count * part..count * (part + 1) {
                    let w = [l.load_bits(&panels[0].lines[block][i]), l.load_bits(&panels[1].lines[block][i])];
                    for r in 0..R {
                        let a = l.splat_bits(u32::from_le_bytes(x[r][block].words[i]));
                        dots[r] = [l.dot::<WIDE>(dots[r][0], w[0], a), l.dot::<WIDE>(dots[r][1], w[1], a)];
                    }
                }
                for g in 0..2 {
                    let scale = l.load(&panels[g].scales[SCALES * block + part]);
                    for r in 0..R {
                        let factor = l.mul(scale, l.splat(x[r][block].scale));
                        sums[r][g] = l.fma(factor, l.to_float(dots[r][g]), sums[r][g]);
                    }
                }
                if MINIMA {
                    for g in 0..2 {
                        let minimum = l.load(&panels[g].minima[SCALES * block + part]);
                        for r in 0..R {
                            sums[r][g] = l.fma(minimum, l.splat(x[r][block].part_sum(SCALES, part)), sums[r][g]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for g in 0..2 {
                l.store(sums[r][g], &mut out[g][row + r]);
            }
        }
    }
}

/// Adds the terms of one group of floats for `R` rows to `out`.
#[inline(always)]
fn add_floats<L: Lanes, F: Float, const R: usize>(
    l: L,
    words: &[[u8; 64]],
    x: [&[f32]; R],
    out: &mut [[f32; LANES]; R],
) {
    let mut sums = [l.splat(0.0); R];
    for r in 0..R {
        sums[r] = l.load(&out[r]);
    }
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

impl QuantBlock {
    /// What an integer dot product of part `part` of `scales` starts with, so that it comes out as if `offset` were
    /// subtracted from the weights.
    #[inline(always)]
    fn offset(&self, scales: usize, offset: i32, part: usize) -> u32 {
        let sum = if scales == 1 { self.sums[0] + self.sums[1] } else { self.sums[part] };
        (-offset * sum).cast_unsigned()
    }

    /// What the minimum of part `part` of `scales` is multiplied by: its activations' sum, rounded once.
    #[inline(always)]
    fn part_sum(&self, scales: usize, part: usize) -> f32 {
        if scales == 1 { self.scaled_sum } else { self.scale * self.sums[part] as f32 }
    }
}
