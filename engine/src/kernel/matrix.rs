//! A weight matrix as the bytes of the file, and the rows of it that look-ups take.

use std::array::from_fn;

use qmesh_models::tensor::TensorType;

use super::{
    float::{BF16, F16, F32, Float, FloatPanel},
    format::{Format, Panel, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0},
    lanes::{Kernel, LANES, Lanes, Simd},
    quantize::BLOCK,
};

/// A matrix of `rows` outputs over `cols` inputs, row after row, as it is in the file.
pub(crate) struct Matrix {
    pub(crate) dtype: TensorType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// `rows` times the bytes of a row.
    pub(crate) bytes: Vec<u8>,
}

impl Matrix {
    /// Sixteen-row groups, the last one perhaps in part.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The rows `ids`, each less than `rows`, widened: (ids, cols).
    pub(crate) fn look_up(&self, simd: Simd, ids: &[u32]) -> Vec<f32> {
        let mut out = vec![0.0; ids.len() * self.cols];
        simd.run(LookUp { matrix: self, ids, out: &mut out });
        out
    }

    /// The bytes of row `row`; the last row stands in for those beyond it.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[u8] {
        let bytes = self.bytes.len() / self.rows;
        &self.bytes[bytes * row.min(self.rows - 1)..][..bytes]
    }

    /// Asks for the part of the sixteen rows from `row` on that comes when columns `start..end` of the sixteen before
    /// are computed: the rows lie one behind another, so the bytes are asked for in their order.
    #[inline(always)]
    pub(super) fn prefetch<L: Lanes>(&self, l: L, row: usize, start: usize, end: usize) {
        let bytes = self.bytes.len() / self.rows * LANES;
        let group = self.bytes.as_ptr().wrapping_add(row / LANES * bytes);
        for at in (bytes * start / self.cols..bytes * end / self.cols).step_by(64) {
            l.prefetch(group.wrapping_add(at));
        }
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({} {}x{})", self.dtype, self.rows, self.cols)
    }
}

struct LookUp<'a> {
    matrix: &'a Matrix,
    ids: &'a [u32],
    out: &'a mut [f32],
}

impl Kernel for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (ids, out) in self.ids.chunks(LANES).zip(self.out.chunks_mut(LANES * self.matrix.cols)) {
            let rows = from_fn(|i| self.matrix.row(ids[i.min(ids.len() - 1)] as usize));
            match self.matrix.dtype {
                TensorType::F32 => floats::<L, F32>(l, rows, self.matrix.cols, out),
                TensorType::F16 => floats::<L, F16>(l, rows, self.matrix.cols, out),
                TensorType::BF16 => floats::<L, BF16>(l, rows, self.matrix.cols, out),
                TensorType::Q4_0 => integers::<L, Q4_0, 18>(l, rows, self.matrix.cols, out),
                TensorType::Q4_1 => integers::<L, Q4_1, 20>(l, rows, self.matrix.cols, out),
                TensorType::Q5_0 => integers::<L, Q5_0, 22>(l, rows, self.matrix.cols, out),
                TensorType::Q5_1 => integers::<L, Q5_1, 24>(l, rows, self.matrix.cols, out),
                TensorType::Q8_0 => integers::<L, Q8_0, 34>(l, rows, self.matrix.cols, out),
                TensorType::Q4K => integers::<L, Q4K, 144>(l, rows, self.matrix.cols, out),
                TensorType::Q5K => integers::<L, Q5K, 176>(l, rows, self.matrix.cols, out),
                TensorType::Q6K => integers::<L, Q6K, 210>(l, rows, self.matrix.cols, out),
            }
        }
    }
}

#[inline(always)]
fn floats<L: Lanes, F: Float>(l: L, rows: [&[u8]; LANES], cols: usize, out: &mut [f32]) {
    let mut panel = FloatPanel::new();
    for start in (0..cols).step_by(FloatPanel::LEN) {
        let len = FloatPanel::LEN.min(cols - start);
        panel.fill::<L, F>(l, rows, start, len);
        for (row, out) in out.chunks_exact_mut(cols).enumerate() {
            for (out, column) in out[start..start + len].iter_mut().zip(&panel.columns) {
                *out = column[row];
            }
        }
    }
}

#[inline(always)]
fn integers<L: Lanes, F: Format<B>, const B: usize>(l: L, rows: [&[u8]; LANES], cols: usize, out: &mut [f32]) {
    let mut panel = Panel::new();
    for block in 0..cols / F::LEN {
        F::unpack(l, rows.map(|r| &r.as_chunks().0[block]), 0, &mut panel);
        for k in 0..F::LEN {
            let (scales, minima) = (&panel.scales[k * F::SCALES / BLOCK], &panel.minima[k / BLOCK]);
            for (row, out) in out.chunks_exact_mut(cols).enumerate() {
                let q = f32::from(panel.lines[k / 4][4 * row + k % 4]) - F::OFFSET as f32;
                let minimum = if F::MINIMA { minima[row] } else { 0.0 };
                out[block * F::LEN + k] = scales[row].mul_add(q, minimum);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use candle_core::{
        Device, Tensor,
        quantized::{GgmlDType, QTensor},
    };

    use super::*;

    /// Reproducible values in about -1..1, most of them small.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| 4.0 * next() * next()).collect()
    }

    /// A random matrix, and the same one dequantised by the tensor framework.
    pub(crate) fn random_matrix(dtype: TensorType, rows: usize, cols: usize) -> (Matrix, Tensor) {
        let tensor = Tensor::from_vec(noise(rows * cols, rows as u64), (rows, cols), &Device::Cpu).unwrap();
        let ggml = match dtype {
            TensorType::F32 => GgmlDType::F32,
            TensorType::F16 => GgmlDType::F16,
            TensorType::BF16 => GgmlDType::BF16,
            TensorType::Q4_0 => GgmlDType::Q4_0,
            TensorType::Q4_1 => GgmlDType::Q4_1,
            TensorType::Q5_0 => GgmlDType::Q5_0,
            TensorType::Q5_1 => GgmlDType::Q5_1,
            TensorType::Q8_0 => GgmlDType::Q8_0,
            TensorType::Q4K => GgmlDType::Q4K,
            TensorType::Q5K => GgmlDType::Q5K,
            TensorType::Q6K => GgmlDType::Q6K,
        };
        let quantized = QTensor::quantize(&tensor, ggml).unwrap();
        let bytes = quantized.data().unwrap().into_owned();
        (Matrix { dtype, rows, cols, bytes }, quantized.dequantize(&Device::Cpu).unwrap())
    }

    #[test]
    fn looked_up_rows_are_those_of_the_framework() {
        for dtype in TensorType::ALL {
            let cols = 3 * dtype.block_len().max(32) + if dtype.block_len() == 1 { 7 } else { 0 };
            let (matrix, expected) = random_matrix(dtype, 19, cols);
            let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
            let ids: Vec<u32> = (0..19).chain([4, 4, 0]).collect();
            for simd in Simd::available() {
                let rows = matrix.look_up(simd, &ids);
                for (row, id) in rows.chunks(cols).zip(&ids) {
                    for (x, y) in row.iter().zip(&expected[*id as usize]) {
                        assert!((x - y).abs() <= 1e-6, "{dtype} {} row {id}: {x} for {y}", simd.name());
                    }
                }
            }
        }
    }
}
