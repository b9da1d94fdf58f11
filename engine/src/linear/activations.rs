//! Activations as products take them: as they are, quantised, or both.

use qmesh_kernels::{
    Cpu,
    product::Inputs,
    quantize::{BLOCK, QuantBlock, Quantize, QuantizeTwice},
};

use super::{Linear, Norm, ROWS_TOGETHER};

/// Rows as products take them.
pub(super) struct Activations {
    pub(super) rows: usize,
    /// Whose sum a row is; (terms, rows, cols).
    pub(super) terms: usize,
    cols: usize,
    pub(super) floats: Vec<f32>,
    pub(super) blocks: Vec<QuantBlock>,
}

impl Activations {
    /// The (normalised) rows of `x`, as `linears`, which all have as many columns, need them.
    pub(super) fn new(cpu: Cpu<'_>, x: &[f32], norm: Option<&Norm>, linears: &[&Linear]) -> Self {
        let mut prepared = Self::zeros(x.len() / linears[0].matrix.cols, linears);
        let Self { cols, floats, blocks, .. } = &mut prepared;
        let cols = *cols;
        let mut floats = floats.chunks_mut(ROWS_TOGETHER * cols);
        let mut blocks = blocks.chunks_mut((ROWS_TOGETHER * cols / BLOCK).max(1));
        let tasks = x.chunks(ROWS_TOGETHER * cols).map(|x| (x, floats.next(), blocks.next())).collect();
        cpu.team.each(tasks, |(x, floats, blocks): (&[f32], Option<&mut [f32]>, Option<&mut [QuantBlock]>)| {
            let mut normed = Vec::new();
            let x = match norm {
                Some(norm) => {
                    normed.extend_from_slice(x);
                    norm.apply(cpu, &mut normed);
                    &normed
                }
                None => x,
            };
            if let Some(floats) = floats {
                floats.copy_from_slice(x);
            }
            if let Some(blocks) = blocks {
                Quantize { x, blocks }.run(cpu.simd);
            }
        });
        prepared
    }

    /// Only `rows` of them, as often as they are listed.
    pub(super) fn gather(&self, rows: &[usize]) -> Self {
        fn gathered<T: Copy>(all: &[T], width: usize, rows: &[usize]) -> Vec<T> {
            if all.is_empty() {
                vec![]
            } else {
                rows.iter().flat_map(|row| &all[row * width..][..width]).copied().collect()
            }
        }
        Self {
            rows: rows.len(),
            terms: 1,
            cols: self.cols,
            floats: gathered(&self.floats, self.cols, rows),
            blocks: gathered(&self.blocks, self.cols / BLOCK, rows),
        }
    }

    /// Multiplies each row by its weight.
    pub(super) fn weigh(&mut self, weights: impl Iterator<Item = f32>) {
        let mut floats = self.floats.chunks_exact_mut(self.cols.max(1));
        let mut blocks = self.blocks.chunks_exact_mut((self.cols / BLOCK).max(1));
        for weight in weights {
            floats.next().into_iter().flatten().for_each(|x| *x *= weight);
            for block in blocks.next().into_iter().flatten() {
                block.scale *= weight;
                block.scaled_sum = block.scale * (block.sums[0] + block.sums[1]) as f32;
            }
        }
    }

    /// The normalised rows of `x`, each as a sum of two where `linear` takes int8.
    pub(super) fn in_two_terms(cpu: Cpu<'_>, x: &[f32], norm: &Norm, linear: &Linear) -> Self {
        let rows = x.len() / linear.matrix.cols;
        let twice = Self::zeros(2 * rows, &[linear]);
        if twice.blocks.is_empty() {
            return Self::new(cpu, x, Some(norm), &[linear]);
        }
        let mut prepared = Self { rows, terms: 2, ..twice };
        let mut normed = x.to_vec();
        norm.apply(cpu, &mut normed);
        let (first, second) = prepared.blocks.split_at_mut(rows * linear.matrix.cols / BLOCK);
        QuantizeTwice { x: &normed, first, second }.run(cpu.simd);
        prepared
    }

    /// Of each row of `x`, which are `stride` wide, what `linear` takes from element `first` on. One thread's work.
    pub(super) fn of_columns(cpu: Cpu<'_>, x: &[f32], stride: usize, first: usize, linear: &Linear) -> Self {
        let mut part = Self::zeros(x.len() / stride, &[linear]);
        let Self { cols, floats, blocks, .. } = &mut part;
        let mut floats = floats.chunks_exact_mut(*cols);
        let mut blocks = blocks.chunks_exact_mut((*cols / BLOCK).max(1));
        for x in x.chunks_exact(stride).map(|row| &row[first..][..*cols]) {
            if let Some(floats) = floats.next() {
                floats.copy_from_slice(x);
            }
            if let Some(blocks) = blocks.next() {
                Quantize { x, blocks }.run(cpu.simd);
            }
        }
        part
    }

    /// Room for rows that `linears`, which all have as many columns, will take.
    pub(super) fn zeros(rows: usize, linears: &[&Linear]) -> Self {
        let cols = linears[0].matrix.cols;
        let (quantized, plain): (Vec<&Linear>, Vec<&Linear>) =
            linears.iter().partition(|l| l.matrix.dtype.block_len() > 1);
        Self {
            rows,
            terms: 1,
            cols,
            floats: vec![0.0; if plain.is_empty() { 0 } else { rows * cols }],
            blocks: vec![QuantBlock::default(); if quantized.is_empty() { 0 } else { rows * cols / BLOCK }],
        }
    }

    pub(super) fn inputs(&self) -> Inputs<'_> {
        Inputs { rows: self.terms * self.rows, cols: self.cols, floats: &self.floats, blocks: &self.blocks }
    }
}
