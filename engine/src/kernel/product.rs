//! Products y = W·x: each output adds its terms serially over K, in one f32 accumulator; sixteen outputs side by side.
//!
//! A few rows take their weights straight from the packed bytes, which stream by; more rows share weights unpacked into
//! a panel that stays in the L1 cache. Both add the same terms in the same order.

use std::{array::from_fn, ops::Range};

use qmesh_models::tensor::TensorType;

use super::{
    float::{BF16, F16, F32, Float},
    format::{Format, Group, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, lines},
    lanes::{Kernel, LANES, Lanes},
    matrix::Matrix,
    quantize::{BLOCK, QuantBlock},
};

/// The right-hand side of products: rows of `cols` activations, as they are or quantised, as the matrix needs them.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// (rows, cols); may be empty where no matrix is of floats.
    pub(crate) floats: &'a [f32],
    /// (rows, cols / 32); may be empty where no matrix is quantised.
    pub(crate) blocks: &'a [QuantBlock],
}

/// Some groups of one matrix times all rows.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix,
    pub(crate) groups: Range<usize>,
    pub(crate) x: Inputs<'a>,
    /// (groups, rows, 16), zeros; the results are added to it.
    pub(crate) out: &'a mut [[f32; LANES]],
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.matrix.dtype {
            TensorType::F32 => self.floats::<L, F32>(l),
            TensorType::F16 => self.floats::<L, F16>(l),
            TensorType::BF16 => self.floats::<L, BF16>(l),
            TensorType::Q4_0 => self.integers::<L, Q4_0, 18>(l),
            TensorType::Q4_1 => self.integers::<L, Q4_1, 20>(l),
            TensorType::Q5_0 => self.integers::<L, Q5_0, 22>(l),
            TensorType::Q5_1 => self.integers::<L, Q5_1, 24>(l),
            TensorType::Q8_0 => self.integers::<L, Q8_0, 34>(l),
            TensorType::Q4K => self.integers::<L, Q4K, 144>(l),
            TensorType::Q5K => self.integers::<L, Q5K, 176>(l),
            TensorType::Q6K => self.integers::<L, Q6K, 210>(l),
        }
    }
}

/// Rows that are computed without a panel.
const FEW_ROWS: usize = 4;

impl Product<'_> {
    #[inline(always)]
    fn integers<L: Lanes, F: Format<B>, const B: usize>(self, l: L) {
        match self.x.rows {
            1 => self.few::<L, F, B, 1>(l),
            2 => self.few::<L, F, B, 2>(l),
            ..=FEW_ROWS => self.few::<L, F, B, FEW_ROWS>(l),
            _ => self.many::<L, F, B>(l),
        }
    }

    /// For up to `R` rows; the last one stands in for those beyond it.
    #[inline(always)]
    fn few<L: Lanes, F: Format<B>, const B: usize, const R: usize>(self, l: L) {
        let (rows, blocks) = (self.x.rows, self.x.cols / BLOCK);
        let x: [&[QuantBlock]; R] = from_fn(|r| &self.x.blocks[r.min(rows - 1) * blocks..][..blocks]);
        for (group, out) in self.groups.clone().zip(self.out.chunks_exact_mut(rows)) {
            let mut sums = [[0.0; LANES]; R];
            sums[..rows].copy_from_slice(out);
            add_packed::<L, F, B, R>(l, self.matrix.blocks(group), x, &mut sums);
            out.copy_from_slice(&sums[..rows]);
        }
    }

    #[inline(always)]
    fn many<L: Lanes, F: Format<B>, const B: usize>(self, l: L) {
        let Self { matrix, groups, x, out } = self;
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
            add_panels::<L, F, B>(l, &panels, &x_rows, part, &mut [low, high]);
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

/// How far ahead of their use bytes are asked for: far enough for memory, near enough to stay in the L2 cache.
const AHEAD: usize = 8192;

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
    let (mut scales, mut minima) = ([[0.0; LANES]; 16], [[0.0; LANES]; 8]);
    let subs = F::LEN / BLOCK;
    for (at, group) in groups.iter().enumerate() {
        let ahead = group.as_ptr().cast::<u8>().wrapping_add(AHEAD);
        prefetch(l, ahead, ahead.wrapping_add(LANES * B));
        F::scales(l, group, &mut scales, &mut minima);
        let x: [&[QuantBlock]; R] = x.map(|x| &x[at * subs..][..subs]);
        macro_rules! sub {
            ($($sub:literal)*) => { $(if $sub < subs {
                let lines = F::lines::<L, $sub>(l, group);
                let scales = &scales[$sub * F::SCALES..][..F::SCALES];
                let minimum = &minima[$sub];
                for r in 0..R {
                    sums[r] = add_block::<L, F, B>(l, lines, scales, minimum, &x[r][$sub], sums[r]);
                }
            })* };
        }
        sub!(0 1 2 3 4 5 6 7);
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
    minimum: &[f32; LANES],
    x: &QuantBlock,
    mut sum: L::F,
) -> L::F {
    let count = 8 / F::SCALES;
    for (part, scale) in scales.iter().enumerate() {
        let mut dots = [l.splat_bits(x.offset::<F, B>(part)), l.splat_bits(0)];
        for i in count * part..count * (part + 1) {
            dots[i % 2] = dot::<L, F, B>(l, dots[i % 2], lines[i], l.splat_bits(u32::from_le_bytes(x.words[i])));
        }
        let dot = l.to_float(l.add_bits(dots[0], dots[1]));
        sum = l.fma(l.mul(l.load(scale), l.splat(x.scale)), dot, sum);
    }
    if F::MINIMA { l.fma(l.load(minimum), l.splat(x.scaled_sum), sum) } else { sum }
}

#[inline(always)]
fn dot<L: Lanes, F: Format<B>, const B: usize>(l: L, sums: L::U, w: L::U, a: L::U) -> L::U {
    // Only bytes that are offset by 128 use their highest bit.
    if F::OFFSET == 128 { l.dot::<true>(sums, w, a) } else { l.dot::<false>(sums, w, a) }
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
    /// One line a block, of formats that have minima.
    minima: [[f32; LANES]; PANEL_BLOCKS],
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
            F::scales(l, group, &mut self.scales[first * F::SCALES..], &mut self.minima[first..]);
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

/// Adds the panels' terms to all rows of two groups.
#[inline(always)]
fn add_panels<L: Lanes, F: Format<B>, const B: usize>(
    l: L,
    panels: &[Panel; 2],
    x: &[&[QuantBlock]],
    part: &Range<usize>,
    out: &mut [&mut [[f32; LANES]]; 2],
) {
    let (sixes, rest) = if L::LARGE_TILES { x.as_chunks::<6>() } else { (&[][..], x) };
    let (pairs, rest) = rest.as_chunks::<2>();
    let mut row = 0;
    for x in sixes {
        add_tile::<L, F, B, 6>(l, panels, x, part, out, row);
        row += 6;
    }
    for x in pairs {
        add_tile::<L, F, B, 2>(l, panels, x, part, out, row);
        row += 2;
    }
    for x in rest {
        add_tile::<L, F, B, 1>(l, panels, &[x], part, out, row);
        row += 1;
    }
}

/// Adds the panels' terms for `R` rows of two groups.
#[allow(clippy::needless_range_loop, reason = "a block is one of the rows' and one of the panels'")]
#[inline(always)]
fn add_tile<L: Lanes, F: Format<B>, const B: usize, const R: usize>(
    l: L,
    panels: &[Panel; 2],
    x: &[&[QuantBlock]; R],
    part: &Range<usize>,
    out: &mut [&mut [[f32; LANES]]; 2],
    row: usize,
) {
    let x: [&[QuantBlock]; R] = from_fn(|r| &x[r][part.clone()]);
    let mut sums = [[l.splat(0.0); 2]; R];
    for r in 0..R {
        sums[r] = [l.load(&out[0][row + r]), l.load(&out[1][row + r])];
    }
    let count = 8 / F::SCALES;
    for block in 0..part.len() {
        for part in 0..F::SCALES {
            let mut dots = [[l.splat_bits(0); 2]; R];
            for r in 0..R {
                dots[r] = [l.splat_bits(x[r][block].offset::<F, B>(part)); 2];
            }
            for i in count * part..count * (part + 1) {
                let w = [l.load_bits(&panels[0].lines[block][i]), l.load_bits(&panels[1].lines[block][i])];
                for r in 0..R {
                    let a = l.splat_bits(u32::from_le_bytes(x[r][block].words[i]));
                    dots[r] = [dot::<L, F, B>(l, dots[r][0], w[0], a), dot::<L, F, B>(l, dots[r][1], w[1], a)];
                }
            }
            for g in 0..2 {
                let scale = l.load(&panels[g].scales[F::SCALES * block + part]);
                for r in 0..R {
                    let factor = l.mul(scale, l.splat(x[r][block].scale));
                    sums[r][g] = l.fma(factor, l.to_float(dots[r][g]), sums[r][g]);
                }
            }
        }
        if F::MINIMA {
            for g in 0..2 {
                let minimum = l.load(&panels[g].minima[block]);
                for r in 0..R {
                    sums[r][g] = l.fma(minimum, l.splat(x[r][block].scaled_sum), sums[r][g]);
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
    /// What an integer dot product of part `part` starts with, so that it comes out as if the offset were subtracted.
    #[inline(always)]
    fn offset<F: Format<B>, const B: usize>(&self, part: usize) -> u32 {
        let sum = if F::SCALES == 1 { self.sums[0] + self.sums[1] } else { self.sums[part] };
        (-F::OFFSET * sum).cast_unsigned()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::kernel::{
        lanes::Simd,
        matrix::tests::{noise, packed, random_file, random_matrix},
        quantize::Quantize,
    };

    fn quantized(simd: Simd, x: &[f32]) -> Vec<QuantBlock> {
        let mut blocks = vec![QuantBlock::default(); x.len() / BLOCK];
        simd.run(Quantize { x, blocks: &mut blocks });
        blocks
    }

    /// (rows, outputs), in shares of `share` groups as threads would compute them.
    fn product(simd: Simd, matrix: &Matrix, x: &[f32], share: usize) -> Vec<f32> {
        let (rows, cols) = (x.len() / matrix.cols, matrix.cols);
        let blocks = if matrix.dtype.block_len() > 1 { quantized(simd, x) } else { Vec::new() };
        let x = Inputs { rows, cols, floats: x, blocks: &blocks };
        let mut tiles = vec![[0.0; LANES]; matrix.groups() * rows];
        for (i, out) in tiles.chunks_mut(share * rows).enumerate() {
            let groups = share * i..share * i + out.len() / rows;
            simd.run(Product { matrix, groups, x, out });
        }
        let at = |row: usize, output: usize| tiles[output / LANES * rows + row][output % LANES];
        (0..rows).flat_map(|row| (0..matrix.rows).map(move |output| at(row, output))).collect()
    }

    /// Relative to the largest output; int8 activations are good for about half a per cent.
    fn assert_close(matrix: &Matrix, dequantized: &Tensor, x: &[f32], y: &[f32]) {
        let x = Tensor::from_slice(x, (x.len() / matrix.cols, matrix.cols), &Device::Cpu).unwrap();
        let weights = dequantized.to_dtype(DType::F64).unwrap().t().unwrap();
        let exact = x.to_dtype(DType::F64).unwrap().matmul(&weights).unwrap();
        let exact: Vec<f64> = exact.flatten_all().unwrap().to_vec1().unwrap();
        let largest = exact.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        let tolerance = if matrix.dtype.block_len() == 1 { 1e-5 } else { 2e-2 };
        for (a, b) in y.iter().zip(&exact) {
            assert!((f64::from(*a) - b).abs() <= tolerance * largest, "{matrix:?}: {a} for {b}");
        }
    }

    #[test]
    fn every_type_and_tier_gives_the_scalar_bits_for_any_number_of_rows() {
        for dtype in TensorType::ALL {
            let unit = dtype.block_len().max(32);
            for (outputs, cols) in [(1, unit), (37, 3 * unit), (48, 576_usize.next_multiple_of(unit)), (16, 11 * unit)]
            {
                let cols = if dtype.block_len() == 1 { cols + 6 } else { cols };
                let (matrix, dequantized) = random_matrix(dtype, outputs, cols);
                let x = noise(70 * cols, 7);
                let tiers = Simd::available();
                let expected = product(tiers[tiers.len() - 1], &matrix, &x, 1);
                assert_close(&matrix, &dequantized, &x, &expected);
                for simd in tiers {
                    for (rows, share) in [(1, 3), (2, 1), (3, 2), (4, 3), (5, 3), (8, 1), (17, 2), (70, 3)] {
                        let y = product(simd, &matrix, &x[..rows * cols], share);
                        assert_eq!(y, expected[..rows * outputs], "{matrix:?} {} {rows} rows", simd.name());
                    }
                }
            }
        }
    }

    /// The widths of real models, which end panels in different places, and up to 300 rows.
    #[test]
    fn wide_matrices_and_many_rows_give_the_bits_of_one_row() {
        let simd = Simd::available()[0];
        for (dtype, cols) in
            [(TensorType::Q5_0, 640), (TensorType::Q8_0, 896), (TensorType::Q4K, 8960), (TensorType::Q6K, 2048)]
        {
            let (matrix, _) = random_matrix(dtype, 35, cols);
            let x = noise(300 * cols, 9);
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| product(simd, &matrix, x, 3)).collect();
            for rows in [6, 63, 64, 300] {
                assert_eq!(product(simd, &matrix, &x[..rows * cols], 3), alone[..rows * 35], "{matrix:?} {rows} rows");
            }
        }
    }

    /// The order of docs/ARCHITECTURE.md written out for one type, from the bytes of the file.
    #[test]
    fn the_canonical_order_is_the_one_written_down() {
        let (file, _) = random_file(TensorType::Q4_1, 3, 96);
        let x = noise(96, 3);
        let blocks = quantized(Simd::available()[0], &x);
        let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let expected: Vec<f32> = file
            .chunks(60)
            .map(|row| {
                row.chunks(20).zip(&blocks).fold(0.0, |sum: f32, (w, a)| {
                    let q = |k: usize| if k < 16 { w[4 + k] & 15 } else { w[4 + k - 16] >> 4 };
                    let a_q = |k: usize| i32::from(a.words[k / 4][k % 4].cast_signed());
                    let dot: i32 = (0..32).map(|k| i32::from(q(k)) * a_q(k)).sum();
                    let sum = (half(w) * a.scale).mul_add(dot as f32, sum);
                    half(&w[2..]).mul_add(a.scaled_sum, sum)
                })
            })
            .collect();
        assert_eq!(product(Simd::available()[0], &packed(TensorType::Q4_1, 3, 96, &file), &x, 1), expected);
    }
}
