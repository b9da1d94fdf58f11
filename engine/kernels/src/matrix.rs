//! A weight matrix, packed, and the rows of it that look-ups take.

use std::ops::Range;

use qmesh_arithmetic::tensor::TensorType;
use qmesh_team::Team;

use super::{
    buffer::Bytes,
    float::Float,
    format::{Form, Group, with_type},
    lanes::{Kernel, LANES, Lanes, Simd},
    pack::{pack, unit_bytes},
    panel::{PANEL_BLOCKS, Panel},
    quantize::BLOCK,
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
        team.each(shares, |share: &mut [u8]| Self::pack_groups(dtype, row_bytes, share));
    }

    /// As [`Matrix::pack`], of some whole groups of a matrix, and by the calling thread alone.
    pub fn pack_groups(dtype: TensorType, row_bytes: usize, groups: &mut [u8]) {
        let mut rows = Vec::new();
        groups.chunks_exact_mut(row_bytes * LANES).for_each(|group| pack(dtype, group, &mut rows));
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

    /// Some of its rows; `None` where they are no whole groups of it, or none at all.
    pub fn part(&self, rows: Range<usize>) -> Option<Self> {
        let whole = [rows.start, rows.end].iter().all(|row| row.is_multiple_of(LANES)) && rows.end <= self.rows;
        let bytes = |row: usize| row / LANES * self.group_bytes();
        let part = || self.bytes.part(bytes(rows.start)..bytes(rows.end));
        (whole && !rows.is_empty()).then(|| Self { rows: rows.len(), bytes: part(), ..*self })
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
        let mut panel = Panel::new();
        for (id, out) in self.ids.iter().zip(self.out.chunks_exact_mut(self.matrix.cols)) {
            let (matrix, row) = (self.matrix, *id as usize);
            if matrix.dtype.block_len() > 1 {
                integers(l, matrix, row, &mut panel, out);
            } else {
                with_type!(matrix.dtype, |F| floats::<L, F>(l, matrix, row, out), |_F, _B| unreachable!(
                    "one to a block"
                ));
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
fn integers<L: Lanes>(l: L, matrix: &Matrix, row: usize, panel: &mut Panel, out: &mut [f32]) {
    let Form { scales, offset, minima, .. } = Form::of_type(matrix.dtype);
    let (lane, blocks) = (row % LANES, matrix.cols / BLOCK);
    // As many blocks as a panel holds; a group's bytes are as long for each.
    let parts = matrix.group(row / LANES).chunks(matrix.group_bytes() / blocks * PANEL_BLOCKS);
    for (packed, out) in parts.zip(out.chunks_mut(PANEL_BLOCKS * BLOCK)) {
        panel.unpack(l, matrix.dtype, packed, &[]);
        for (block, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            for (i, (line, out)) in panel.lines[block].iter().zip(out.as_chunks_mut::<4>().0).enumerate() {
                let part = (8 * block + i) * scales / 8;
                let scale = panel.scales[part][lane];
                let minimum = if minima { panel.minima[part][lane] } else { 0.0 };
                for (out, q) in out.iter_mut().zip(&line[4 * lane..]) {
                    *out = scale.mul_add(f32::from(*q) - offset as f32, minimum);
                }
            }
        }
    }
}
