//! A weight matrix, packed, and the rows of it that look-ups take.

use qmesh_arithmetic::tensor::TensorType;

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
pub struct Matrix {
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The packed groups.
    pub bytes: Bytes,
}

impl Matrix {
    /// Bytes of a matrix whose rows take `row_bytes` in the file; `None` where a row is no whole number of units, or the
    /// size overflows.
    pub fn packed_len(dtype: TensorType, rows: usize, row_bytes: usize) -> Option<usize> {
        let whole = row_bytes > 0 && row_bytes.is_multiple_of(unit_bytes(dtype));
        whole.then(|| rows.div_ceil(LANES).checked_mul(LANES)?.checked_mul(row_bytes))?
    }

    /// Packs in place: `bytes` is [`Matrix::packed_len`] long and begins with the matrix as it is in the file.
    pub fn pack(team: &Team, dtype: TensorType, row_bytes: usize, bytes: &mut [u8]) {
        let shares = bytes.chunks_mut(row_bytes * LANES * PACKED_TOGETHER).collect();
        team.each(shares, |share: &mut [u8]| {
            let mut rows = Vec::new();
            share.chunks_exact_mut(row_bytes * LANES).for_each(|group| pack(dtype, group, &mut rows));
        });
    }

    /// Sixteen-row groups, the last one perhaps in part.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of a group.
    pub fn group_bytes(&self) -> usize {
        self.bytes.len() / self.groups()
    }

    /// The `count` matrices that lie one below the other in it; `None` where one of them is no whole number of groups.
    pub fn stacked(&self, count: usize) -> Option<Vec<Self>> {
        let rows = self.rows / count;
        let whole = self.rows.is_multiple_of(count) && rows.is_multiple_of(LANES);
        let len = self.bytes.len() / count;
        let part = |i: usize| Self { rows, bytes: self.bytes.part(i * len..(i + 1) * len), ..*self };
        whole.then(|| (0..count).map(part).collect())
    }

    /// Writes the rows `ids`, each less than `rows`, widened: (ids, cols).
    pub fn look_up(&self, simd: Simd, ids: &[u32], out: &mut [f32]) {
        simd.run(LookUp { matrix: self, ids, out });
    }

    /// The first row, of a vector the only one.
    pub fn vector(&self, simd: Simd) -> Vec<f32> {
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
    fn compute<L: Lanes>(self, l: L) {
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
