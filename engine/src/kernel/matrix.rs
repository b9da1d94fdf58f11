//! A weight matrix, packed, and the rows of it that look-ups take.

use qmesh_models::tensor::TensorType;

use super::{
    buffer::Bytes,
    float::{BF16, F16, F32, Float},
    format::{Format, Group, IQ4NL, IQ4XS, MXFP4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, lines},
    lanes::{Kernel, LANES, Lanes, Simd},
    pack::{pack, unit_bytes},
    quantize::BLOCK,
    team::Team,
};

/// A matrix of `rows` outputs over `cols` inputs, in groups of sixteen rows, each packed as `pack` says; rows of zeros
/// fill the last group up.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) dtype: TensorType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bytes: Bytes,
}

impl Matrix {
    /// Bytes of a matrix whose rows take `row_bytes` in the file; `None` where a row is no whole number of units, or the
    /// size overflows.
    pub(crate) fn packed_len(dtype: TensorType, rows: usize, row_bytes: usize) -> Option<usize> {
        let whole = row_bytes > 0 && row_bytes.is_multiple_of(unit_bytes(dtype));
        whole.then(|| rows.div_ceil(LANES).checked_mul(LANES)?.checked_mul(row_bytes))?
    }

    /// Packs in place: `bytes` is [`Matrix::packed_len`] long and begins with the matrix as it is in the file.
    pub(crate) fn pack(team: &Team, dtype: TensorType, row_bytes: usize, bytes: &mut [u8]) {
        let shares = bytes.chunks_mut(row_bytes * LANES * PACKED_TOGETHER).collect();
        team.each(shares, |share: &mut [u8]| {
            let mut rows = Vec::new();
            share.chunks_exact_mut(row_bytes * LANES).for_each(|group| pack(dtype, group, &mut rows));
        });
    }

    /// Sixteen-row groups, the last one perhaps in part.
    pub(crate) fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of a group.
    pub(crate) fn group_bytes(&self) -> usize {
        self.bytes.len() / self.groups()
    }

    /// The `count` matrices that lie one below the other in it; `None` where one of them is no whole number of groups.
    pub(crate) fn stacked(&self, count: usize) -> Option<Vec<Self>> {
        let rows = self.rows / count;
        let whole = self.rows.is_multiple_of(count) && rows.is_multiple_of(LANES);
        let len = self.bytes.len() / count;
        let part = |i: usize| Self { rows, bytes: self.bytes.part(i * len..(i + 1) * len), ..*self };
        whole.then(|| (0..count).map(part).collect())
    }

    /// Writes the rows `ids`, each less than `rows`, widened: (ids, cols).
    pub(crate) fn look_up(&self, simd: Simd, ids: &[u32], out: &mut [f32]) {
        simd.run(LookUp { matrix: self, ids, out });
    }

    /// The first row, of a vector the only one.
    pub(crate) fn vector(&self, simd: Simd) -> Vec<f32> {
        let mut vector = vec![0.0; self.cols];
        self.look_up(simd, &[0], &mut vector);
        vector
    }

    /// One group's bytes.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[u8] {
        let len = self.group_bytes();
        &self.bytes[len * group..][..len]
    }

    /// One group's blocks, of a quantised type.
    #[inline(always)]
    pub(super) fn blocks<const BYTES: usize>(&self, group: usize) -> &[Group<BYTES>] {
        self.group(group).as_chunks::<BYTES>().0.as_chunks::<LANES>().0
    }

    /// One group's words, of a float type: 64-byte lines, lane = row.
    #[inline(always)]
    pub(super) fn words(&self, group: usize) -> &[[u8; 64]] {
        self.group(group).as_chunks().0
    }
}

/// Groups that a thread packs at a time.
const PACKED_TOGETHER: usize = 8;

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
        for (id, out) in self.ids.iter().zip(self.out.chunks_exact_mut(self.matrix.cols)) {
            let (matrix, row) = (self.matrix, *id as usize);
            match matrix.dtype {
                TensorType::F32 => floats::<L, F32>(l, matrix, row, out),
                TensorType::F16 => floats::<L, F16>(l, matrix, row, out),
                TensorType::BF16 => floats::<L, BF16>(l, matrix, row, out),
                TensorType::Q4_0 => integers::<L, Q4_0, 18>(l, matrix, row, out),
                TensorType::Q4_1 => integers::<L, Q4_1, 20>(l, matrix, row, out),
                TensorType::Q5_0 => integers::<L, Q5_0, 22>(l, matrix, row, out),
                TensorType::Q5_1 => integers::<L, Q5_1, 24>(l, matrix, row, out),
                TensorType::Q8_0 => integers::<L, Q8_0, 34>(l, matrix, row, out),
                TensorType::Q2K => integers::<L, Q2K, 84>(l, matrix, row, out),
                TensorType::Q3K => integers::<L, Q3K, 110>(l, matrix, row, out),
                TensorType::Q4K => integers::<L, Q4K, 144>(l, matrix, row, out),
                TensorType::Q5K => integers::<L, Q5K, 176>(l, matrix, row, out),
                TensorType::Q6K => integers::<L, Q6K, 210>(l, matrix, row, out),
                TensorType::IQ4NL => integers::<L, IQ4NL, 18>(l, matrix, row, out),
                TensorType::IQ4XS => integers::<L, IQ4XS, 136>(l, matrix, row, out),
                TensorType::MXFP4 => integers::<L, MXFP4, 17>(l, matrix, row, out),
            }
        }
    }
}

#[inline(always)]
fn floats<L: Lanes, F: Float>(l: L, matrix: &Matrix, row: usize, out: &mut [f32]) {
    let mut widened = [0.0; LANES];
    for (word, out) in matrix.words(row / LANES).iter().zip(out.chunks_mut(F::PER_WORD)) {
        for (i, out) in out.iter_mut().enumerate() {
            l.store(
                if i == 0 { F::first(l, l.load_bits(word)) } else { F::second(l, l.load_bits(word)) },
                &mut widened,
            );
            *out = widened[row % LANES];
        }
    }
}

#[inline(always)]
fn integers<L: Lanes, F: Format<B>, const B: usize>(l: L, matrix: &Matrix, row: usize, out: &mut [f32]) {
    let (mut scales, mut minima) = ([[0.0; LANES]; 16], [[0.0; LANES]; 16]);
    let lane = row % LANES;
    for (group, out) in matrix.blocks::<B>(row / LANES).iter().zip(out.chunks_exact_mut(F::LEN)) {
        F::scales(l, group, &mut scales, &mut minima);
        for (sub, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let lines = lines::<L, F, B>(l, group, sub);
            for (i, (line, out)) in lines.into_iter().zip(out.as_chunks_mut::<4>().0).enumerate() {
                let mut bytes = [0; 64];
                l.store_bits(line, &mut bytes);
                let part = (8 * sub + i) * F::SCALES / 8;
                let scale = scales[part][lane];
                let minimum = if F::MINIMA { minima[part][lane] } else { 0.0 };
                for (out, q) in out.iter_mut().zip(&bytes[4 * lane..]) {
                    *out = scale.mul_add(f32::from(*q) - F::OFFSET as f32, minimum);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use candle_core::{
        Device, Tensor,
        quantized::{GgmlDType, QTensor},
    };

    use super::*;
    use crate::kernel::{buffer::Buffer, format::random_blocks};

    /// Reproducible values in about -1..1, most of them small.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(|_| 4.0 * next() * next()).collect()
    }

    /// The matrix that these bytes of a file are.
    pub(crate) fn packed(dtype: TensorType, rows: usize, cols: usize, file: &[u8]) -> Matrix {
        let len = Matrix::packed_len(dtype, rows, file.len() / rows).unwrap();
        let mut buffer = Buffer::new(len).unwrap();
        buffer.bytes_mut()[..file.len()].copy_from_slice(file);
        Matrix::pack(&Team::new(1).unwrap(), dtype, file.len() / rows, &mut buffer.bytes_mut()[..len]);
        Matrix { dtype, rows, cols, bytes: Bytes::new(Arc::new(buffer), 0..len) }
    }

    /// A random matrix as bytes of a file, and dequantised by the tensor framework, or as the format says where the
    /// framework does not know it.
    pub(crate) fn random_file(dtype: TensorType, rows: usize, cols: usize) -> (Vec<u8>, Tensor) {
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
            TensorType::Q2K => GgmlDType::Q2K,
            TensorType::Q3K => GgmlDType::Q3K,
            TensorType::Q4K => GgmlDType::Q4K,
            TensorType::Q5K => GgmlDType::Q5K,
            TensorType::Q6K => GgmlDType::Q6K,
            TensorType::IQ4NL | TensorType::IQ4XS | TensorType::MXFP4 => {
                let (file, values) = random_blocks(dtype, rows * cols / dtype.block_len());
                return (file, Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap());
            }
        };
        let quantized = QTensor::quantize(&tensor, ggml).unwrap();
        (quantized.data().unwrap().into_owned(), quantized.dequantize(&Device::Cpu).unwrap())
    }

    /// The matrix of [`random_file`], and the same one dequantised.
    pub(crate) fn random_matrix(dtype: TensorType, rows: usize, cols: usize) -> (Matrix, Tensor) {
        let (file, tensor) = random_file(dtype, rows, cols);
        (packed(dtype, rows, cols, &file), tensor)
    }

    #[test]
    fn looked_up_rows_are_those_of_the_framework() {
        for dtype in TensorType::ALL {
            let cols = 3 * dtype.block_len().max(32) + if dtype.block_len() == 1 { 6 } else { 0 };
            let (matrix, expected) = random_matrix(dtype, 19, cols);
            let expected: Vec<Vec<f32>> = expected.to_vec2().unwrap();
            let ids: Vec<u32> = (0..19).chain([4, 4, 0]).collect();
            for simd in Simd::available() {
                let mut rows = vec![0.0; ids.len() * cols];
                matrix.look_up(simd, &ids, &mut rows);
                for (row, id) in rows.chunks(cols).zip(&ids) {
                    for (x, y) in row.iter().zip(&expected[*id as usize]) {
                        assert!((x - y).abs() <= 1e-6, "{dtype} {} row {id}: {x} for {y}", simd.name());
                    }
                }
            }
        }
    }

    #[test]
    fn stacked_matrices_are_parted() {
        let (all, expected) = random_matrix(TensorType::Q8_0, 96, 64);
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        for (i, part) in all.stacked(3).unwrap().iter().enumerate() {
            let mut rows = vec![0.0; 32 * 64];
            part.look_up(Simd::available()[0], &(0..32).collect::<Vec<_>>(), &mut rows);
            assert_eq!(rows, expected[i * 32 * 64..][..32 * 64], "part {i}");
        }
        assert!(all.stacked(4).is_none() && all.stacked(5).is_none(), "24 rows, and 19.2");
    }

    #[test]
    fn sizes_that_cannot_be_packed_are_refused() {
        assert_eq!(Matrix::packed_len(TensorType::Q4_0, 17, 36), Some(32 * 36));
        assert_eq!(Matrix::packed_len(TensorType::F16, 1, 6), None);
        assert_eq!(Matrix::packed_len(TensorType::F32, usize::MAX / 2, 8), None);
    }
}
