//! Products y = W·x: each output adds its terms serially over K, in one f32 accumulator; sixteen outputs side by side.

use std::array::{from_fn, from_mut};

use qmesh_models::tensor::TensorType;
use rayon::prelude::*;

use super::{
    float::{BF16, F16, F32, Float, FloatPanel},
    format::{Format, PANEL_BLOCKS, Panel, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
    lanes::{Kernel, LANES, Lanes, Simd},
    matrix::Matrix,
    quantize::{BLOCK, QuantBlock, Quantize},
};

/// The right-hand side of products: rows of activations, as they are and quantised.
pub(crate) struct Inputs<'a> {
    rows: usize,
    cols: usize,
    floats: &'a [f32],
    /// Empty where no matrix is quantised.
    blocks: Vec<QuantBlock>,
}

impl<'a> Inputs<'a> {
    /// Prepares `floats` (rows, cols) for products with `matrices`, which all have `cols` columns.
    pub(crate) fn new(simd: Simd, floats: &'a [f32], cols: usize, matrices: &[&Matrix]) -> Self {
        let mut blocks = Vec::new();
        if matrices.iter().any(|m| m.dtype.block_len() > 1) {
            blocks.resize(floats.len() / BLOCK, QuantBlock::default());
            let rows = floats.par_chunks(cols).zip(blocks.par_chunks_mut(cols / BLOCK));
            rows.with_min_len(4).for_each(|(x, blocks)| simd.run(Quantize { x, blocks }));
        }
        Self { rows: floats.len() / cols, cols, floats, blocks }
    }
}

/// The outputs of products, in tiles of sixteen: matrix, group of outputs, row, output.
pub(crate) struct Tiles {
    rows: usize,
    widths: Vec<usize>,
    values: Vec<f32>,
}

impl Tiles {
    /// Multiplies each matrix with each row.
    pub(crate) fn products(simd: Simd, x: &Inputs<'_>, matrices: &[&Matrix]) -> Self {
        let tile = x.rows * LANES;
        let groups: usize = matrices.iter().map(|m| m.groups()).sum();
        let mut values = vec![0.0; groups * tile];
        let share = groups.div_ceil(4 * rayon::current_num_threads());
        let mut tasks = Vec::with_capacity(groups / share + matrices.len());
        let mut rest = values.as_mut_slice();
        for matrix in matrices {
            let (own, others) = rest.split_at_mut(matrix.groups() * tile);
            rest = others;
            let shares = own.chunks_mut(share * tile).enumerate();
            tasks.extend(shares.map(|(i, out)| Product { matrix, first: i * share, x, out }));
        }
        tasks.into_par_iter().with_max_len(1).for_each(|task| simd.run(task));
        Self { rows: x.rows, widths: matrices.iter().map(|m| m.rows).collect(), values }
    }

    /// The outputs as rows: (rows, outputs of all matrices in order).
    pub(crate) fn into_rows(self) -> Vec<f32> {
        if self.rows == 1 && self.widths.iter().all(|w| w.is_multiple_of(LANES)) {
            return self.values;
        }
        let width: usize = self.widths.iter().sum();
        let mut out = vec![0.0; self.rows * width];
        let rows = out.par_chunks_mut(width).enumerate();
        rows.with_min_len(16).for_each(|(row, out)| self.copy_row(row, out));
        out
    }

    fn copy_row(&self, row: usize, mut out: &mut [f32]) {
        let mut tiles = self.values.as_chunks::<LANES>().0;
        for width in &self.widths {
            let (own, others) = out.split_at_mut(*width);
            for (out, tile) in own.chunks_mut(LANES).zip(tiles[row..].iter().step_by(self.rows)) {
                out.copy_from_slice(&tile[..out.len()]);
            }
            out = others;
            tiles = &tiles[width.div_ceil(LANES) * self.rows..];
        }
    }
}

/// Some groups of one matrix times all rows.
struct Product<'a> {
    matrix: &'a Matrix,
    /// First group.
    first: usize,
    x: &'a Inputs<'a>,
    /// (groups, rows, 16), zeros
    out: &'a mut [f32],
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

impl Product<'_> {
    #[inline(always)]
    fn integers<L: Lanes, F: Format<B>, const B: usize>(self, l: L) {
        let mut panel = Panel::new();
        let blocks = self.x.cols / BLOCK;
        let x_rows: Vec<&[QuantBlock]> = self.x.blocks.chunks_exact(blocks).collect();
        let (x_fours, x_rest) = x_rows.as_chunks::<4>();
        for (group, out) in self.out.chunks_exact_mut(self.x.rows * LANES).enumerate() {
            let first = (self.first + group) * LANES;
            let rows: [&[[u8; B]]; LANES] = from_fn(|i| self.matrix.row(first + i).as_chunks().0);
            let (out_fours, out_rest) = fours(out);
            for start in (0..blocks).step_by(PANEL_BLOCKS) {
                let end = blocks.min(start + PANEL_BLOCKS);
                self.matrix.prefetch(l, first + LANES, start * BLOCK, end * BLOCK);
                for at in (start..end).step_by(F::LEN / BLOCK) {
                    let block = at * BLOCK / F::LEN;
                    F::unpack(l, from_fn(|i| &rows[i][block]), at - start, &mut panel);
                }
                for (x, out) in x_fours.iter().zip(&mut *out_fours) {
                    add_integers::<L, F, B, 4>(l, &panel, x.map(|x| &x[start..end]), out);
                }
                for (x, out) in x_rest.iter().zip(&mut *out_rest) {
                    add_integers::<L, F, B, 1>(l, &panel, [&x[start..end]], from_mut(out));
                }
            }
        }
    }

    #[inline(always)]
    fn floats<L: Lanes, F: Float>(self, l: L) {
        let mut panel = FloatPanel::new();
        let cols = self.x.cols;
        let x_rows: Vec<&[f32]> = self.x.floats.chunks_exact(cols).collect();
        let (x_fours, x_rest) = x_rows.as_chunks::<4>();
        for (group, out) in self.out.chunks_exact_mut(self.x.rows * LANES).enumerate() {
            let first = (self.first + group) * LANES;
            let rows = from_fn(|i| self.matrix.row(first + i));
            let (out_fours, out_rest) = fours(out);
            for start in (0..cols).step_by(FloatPanel::LEN) {
                let end = cols.min(start + FloatPanel::LEN);
                self.matrix.prefetch(l, first + LANES, start, end);
                panel.fill::<L, F>(l, rows, start, end - start);
                let columns = &panel.columns[..end - start];
                for (x, out) in x_fours.iter().zip(&mut *out_fours) {
                    add_floats::<L, 4>(l, columns, x.map(|x| &x[start..end]), out);
                }
                for (x, out) in x_rest.iter().zip(&mut *out_rest) {
                    add_floats::<L, 1>(l, columns, [&x[start..end]], from_mut(out));
                }
            }
        }
    }
}

/// The rows of a group's outputs, four at a time, and the rest.
fn fours(out: &mut [f32]) -> (&mut [[[f32; LANES]; 4]], &mut [[f32; LANES]]) {
    out.as_chunks_mut().0.as_chunks_mut()
}

/// Adds the panel's terms for `R` rows to `out`.
#[inline(always)]
fn add_integers<L: Lanes, F: Format<B>, const B: usize, const R: usize>(
    l: L,
    panel: &Panel,
    x: [&[QuantBlock]; R],
    out: &mut [[f32; LANES]; R],
) {
    let mut sums = [l.splat(0.0); R];
    for r in 0..R {
        sums[r] = l.load(&out[r]);
    }
    let lines = 8 / F::SCALES;
    for block in 0..x[0].len() {
        let x = x.map(|row| &row[block]);
        for part in 0..F::SCALES {
            let mut dots = [l.splat_bits(0); R];
            if F::OFFSET != 0 {
                for r in 0..R {
                    let sums = x[r].sums;
                    let sum = if F::SCALES == 1 { sums[0] + sums[1] } else { sums[part] };
                    dots[r] = l.splat_bits((-F::OFFSET * sum).cast_unsigned());
                }
            }
            for i in lines * part..lines * (part + 1) {
                let w = l.load_bits(&panel.lines[8 * block + i]);
                for r in 0..R {
                    let a = l.splat_bits(u32::from_le_bytes(x[r].words[i]));
                    // Only the bytes that are offset by 128 use their highest bit.
                    dots[r] =
                        if F::OFFSET == 128 { l.dot::<true>(dots[r], w, a) } else { l.dot::<false>(dots[r], w, a) };
                }
            }
            let scale = l.load(&panel.scales[F::SCALES * block + part]);
            for r in 0..R {
                sums[r] = l.fma(l.mul(scale, l.splat(x[r].scale)), l.to_float(dots[r]), sums[r]);
            }
        }
        if F::MINIMA {
            let minimum = l.load(&panel.minima[block]);
            for r in 0..R {
                sums[r] = l.fma(minimum, l.splat(x[r].scaled_sum), sums[r]);
            }
        }
    }
    for r in 0..R {
        l.store(sums[r], &mut out[r]);
    }
}

/// Adds the panel's terms for `R` rows to `out`.
#[inline(always)]
fn add_floats<L: Lanes, const R: usize>(l: L, columns: &[[f32; LANES]], x: [&[f32]; R], out: &mut [[f32; LANES]; R]) {
    let mut sums = [l.splat(0.0); R];
    for r in 0..R {
        sums[r] = l.load(&out[r]);
    }
    for (k, column) in columns.iter().enumerate() {
        let w = l.load(column);
        for r in 0..R {
            sums[r] = l.fma(w, l.splat(x[r][k]), sums[r]);
        }
    }
    for r in 0..R {
        l.store(sums[r], &mut out[r]);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::kernel::matrix::tests::{noise, random_matrix};

    fn product(simd: Simd, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
        Tiles::products(simd, &Inputs::new(simd, x, matrix.cols, &[matrix]), &[matrix]).into_rows()
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
            for (outputs, cols) in [(1, unit), (37, 3 * unit), (16, 11 * unit)] {
                let cols = if dtype.block_len() == 1 { cols + 5 } else { cols };
                let (matrix, dequantized) = random_matrix(dtype, outputs, cols);
                let x = noise(37 * cols, 7);
                let tiers = Simd::available();
                let expected = product(tiers[tiers.len() - 1], &matrix, &x);
                assert_close(&matrix, &dequantized, &x, &expected);
                for simd in tiers {
                    for rows in [1, 2, 5, 8, 37] {
                        let y = product(simd, &matrix, &x[..rows * cols]);
                        assert_eq!(y, expected[..rows * outputs], "{matrix:?} {} {rows} rows", simd.name());
                    }
                }
            }
        }
    }

    /// The order of §"exactness" written out for one type, from the bytes of the file.
    #[test]
    fn the_canonical_order_is_the_one_written_down() {
        let (matrix, _) = random_matrix(TensorType::Q4_1, 3, 96);
        let x = noise(96, 3);
        let mut blocks = [QuantBlock::default(); 3];
        Simd::available()[0].run(Quantize { x: &x, blocks: &mut blocks });
        let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        let expected: Vec<f32> = (0..3)
            .map(|row| {
                let weights = matrix.row(row).as_chunks::<20>().0;
                weights.iter().zip(&blocks).fold(0.0, |sum: f32, (w, a)| {
                    let q = |k: usize| if k < 16 { w[4 + k] & 15 } else { w[4 + k - 16] >> 4 };
                    let a_q = |k: usize| i32::from(a.words[k / 4][k % 4].cast_signed());
                    let dot: i32 = (0..32).map(|k| i32::from(q(k)) * a_q(k)).sum();
                    let sum = (half(w) * a.scale).mul_add(dot as f32, sum);
                    half(&w[2..]).mul_add(a.scaled_sum, sum)
                })
            })
            .collect();
        assert_eq!(product(Simd::available()[0], &matrix, &x), expected);
    }
}
