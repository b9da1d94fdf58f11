//! Products with weights, with what belongs to them: the norm before, the bias, the gate, the norm and residual after.
//!
//! Each function is one fork and join of the team per product: a task takes some groups of outputs through the product
//! and everything that follows it element by element, while the outputs are in its cache.

use std::ops::Range;

use candle_core::{Result, Tensor};
use qmesh_models::spec::Activation;

use crate::{
    kernel::{
        Machine,
        columns::Columns,
        lanes::LANES,
        math::Gate,
        matrix::Matrix,
        norm::RmsNorm,
        product::{Inputs, Product},
        quantize::{BLOCK, QuantBlock, Quantize, QuantizeTiles, QuantizeTwice},
    },
    ops,
};

/// An RMS norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) gain: Vec<f32>,
    pub(crate) eps: f32,
}

/// A weight matrix and its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Norm {
    /// Normalises rows in place; `rows` may also be heads.
    pub(crate) fn apply(&self, machine: Machine<'_>, rows: &mut [f32]) {
        machine.simd.run(RmsNorm { x: rows, gain: &self.gain, eps: self.eps });
    }
}

/// The products of the (normalised) rows of `x` with each matrix, side by side: (rows, all outputs).
pub(crate) fn project(machine: Machine<'_>, x: &Tensor, norm: Option<&Norm>, linears: &[&Linear]) -> Result<Tensor> {
    ops::map("project", x, |x| {
        let x = Activations::new(machine, x, norm, linears);
        products(machine, &x, linears, |_, _, _| ())
    })
}

/// The products of the normalised rows of `x` with the head's matrix: (rows, vocab). What rounding these activations costs
/// goes straight into the logits, and their rows are few: they are taken as the sum of two int8 terms, a row each.
pub(crate) fn logits(machine: Machine<'_>, x: &Tensor, norm: &Norm, head: &Linear) -> Result<Tensor> {
    ops::map("logits", x, |x| {
        let x = Activations::in_two_terms(machine, x, norm, head);
        products(machine, &x, &[head], |_, _, _| ())
    })
}

/// residual + norm(W·x): (rows, hidden).
pub(crate) fn project_add(
    machine: Machine<'_>,
    x: &Tensor,
    linear: &Linear,
    norm: Option<&Norm>,
    residual: &Tensor,
) -> Result<Tensor> {
    ops::map2("project_add", x, residual, |x, residual| {
        add(machine, &Activations::new(machine, x, None, &[linear]), linear, norm, residual)
    })
}

/// x + norm(down(act(gate(norm(x))) · up(norm(x)))): (rows, hidden).
pub(crate) fn gated(
    machine: Machine<'_>,
    x: &Tensor,
    before: &Norm,
    [gate, up, down]: [&Linear; 3],
    activation: Activation,
    after: Option<&Norm>,
) -> Result<Tensor> {
    ops::map("gated", x, |x| {
        let inputs = Activations::new(machine, x, Some(before), &[gate, up]);
        let inner = gate_products(machine, &inputs, [gate, up], activation, down); // (rows, inner)
        add(machine, &inner, down, after, x)
    })
}

/// Rows as products take them.
struct Activations {
    rows: usize,
    /// Whose sum a row is; (terms, rows, cols).
    terms: usize,
    cols: usize,
    floats: Vec<f32>,
    blocks: Vec<QuantBlock>,
}

/// Rows that a thread prepares at a time.
const ROWS_TOGETHER: usize = 8;

impl Activations {
    /// The (normalised) rows of `x`, as `linears`, which all have as many columns, need them.
    fn new(machine: Machine<'_>, x: &[f32], norm: Option<&Norm>, linears: &[&Linear]) -> Self {
        let mut prepared = Self::zeros(x.len() / linears[0].matrix.cols, linears);
        let Self { cols, floats, blocks, .. } = &mut prepared;
        let cols = *cols;
        let mut floats = floats.chunks_mut(ROWS_TOGETHER * cols);
        let mut blocks = blocks.chunks_mut((ROWS_TOGETHER * cols / BLOCK).max(1));
        let tasks = x.chunks(ROWS_TOGETHER * cols).map(|x| (x, floats.next(), blocks.next())).collect();
        machine.team.each(tasks, |(x, floats, blocks): (&[f32], Option<&mut [f32]>, Option<&mut [QuantBlock]>)| {
            let mut normed = Vec::new();
            let x = match norm {
                Some(norm) => {
                    normed.extend_from_slice(x);
                    norm.apply(machine, &mut normed);
                    &normed
                }
                None => x,
            };
            if let Some(floats) = floats {
                floats.copy_from_slice(x);
            }
            if let Some(blocks) = blocks {
                machine.simd.run(Quantize { x, blocks });
            }
        });
        prepared
    }

    /// The normalised rows of `x`, each as a sum of two where `linear` takes int8.
    fn in_two_terms(machine: Machine<'_>, x: &[f32], norm: &Norm, linear: &Linear) -> Self {
        let rows = x.len() / linear.matrix.cols;
        let twice = Self::zeros(2 * rows, &[linear]);
        if twice.blocks.is_empty() {
            return Self::new(machine, x, Some(norm), &[linear]);
        }
        let mut prepared = Self { rows, terms: 2, ..twice };
        let mut normed = x.to_vec();
        norm.apply(machine, &mut normed);
        let (first, second) = prepared.blocks.split_at_mut(rows * linear.matrix.cols / BLOCK);
        machine.simd.run(QuantizeTwice { x: &normed, first, second });
        prepared
    }

    fn zeros(rows: usize, linears: &[&Linear]) -> Self {
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

    fn inputs(&self) -> Inputs<'_> {
        Inputs { rows: self.terms * self.rows, cols: self.cols, floats: &self.floats, blocks: &self.blocks }
    }
}

/// Some groups of outputs of one matrix.
struct Share<'a> {
    linear: &'a Linear,
    groups: Range<usize>,
}

impl<'a> Share<'a> {
    /// All groups of `linears` in shares of an even number of groups: enough of them that no thread waits long for
    /// another, and few enough rows at a time that their outputs stay in the L2 cache.
    fn of(machine: Machine<'_>, rows: usize, linears: &[&'a Linear]) -> Vec<Self> {
        const CACHED: usize = 512 << 10;
        let groups: usize = linears.iter().map(|l| l.matrix.groups()).sum();
        let cached = CACHED / (rows * LANES * size_of::<f32>());
        let share = groups.div_ceil(4 * machine.team.threads()).min(cached).max(1).next_multiple_of(2);
        let shares = linears.iter().flat_map(|linear| {
            let groups = linear.matrix.groups();
            (0..groups).step_by(share).map(move |first| Share { linear, groups: first..groups.min(first + share) })
        });
        shares.collect()
    }

    /// Outputs, without what fills the last group up.
    fn width(&self) -> usize {
        self.outputs().len()
    }

    fn outputs(&self) -> Range<usize> {
        self.groups.start * LANES..self.linear.matrix.rows.min(self.groups.end * LANES)
    }

    /// The outputs with their bias: (groups, terms, rows, 16), of which the first of the terms is their sum.
    fn compute(&self, machine: Machine<'_>, x: &Activations) -> Vec<[f32; LANES]> {
        let mut tiles = vec![[0.0; LANES]; self.groups.len() * x.terms * x.rows];
        let (matrix, groups) = (&self.linear.matrix, self.groups.clone());
        machine.simd.run(Product { matrix, groups, x: x.inputs(), out: &mut tiles });
        if x.terms > 1 {
            for tiles in tiles.chunks_exact_mut(x.terms * x.rows) {
                let (sums, terms) = tiles.split_at_mut(x.rows);
                for terms in terms.chunks_exact(x.rows) {
                    let terms = terms.as_flattened().iter();
                    sums.as_flattened_mut().iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
            }
        }
        if let Some(bias) = &self.linear.bias {
            for (bias, tiles) in bias[self.outputs()].chunks(LANES).zip(tiles.chunks_exact_mut(x.terms * x.rows)) {
                let sums = &mut tiles[..x.rows];
                sums.iter_mut().for_each(|tile| tile.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
            }
        }
        tiles
    }
}

/// The products of all rows with each matrix, side by side: (rows, all outputs). `finish` is given each share's part of
/// each row: the row, the first of the outputs, and their values.
fn products(
    machine: Machine<'_>,
    x: &Activations,
    linears: &[&Linear],
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let shares = Share::of(machine, x.terms * x.rows, linears);
    let widths: Vec<usize> = shares.iter().map(Share::width).collect();
    let mut out = vec![0.0; x.rows * widths.iter().sum::<usize>()];
    let tasks = shares.into_iter().zip(Columns::split(&mut out, &widths)).collect();
    machine.team.each(tasks, |(share, mut columns): (Share<'_>, Columns<'_, f32>)| {
        let tiles = share.compute(machine, x);
        for row in 0..x.rows {
            let to = columns.row(row);
            copy_row(tiles[row..].iter().step_by(x.terms * x.rows), to);
            finish(row, share.groups.start * LANES, to);
        }
    });
    out
}

/// Copies the tiles of one row; the last one may hold more than there is.
fn copy_row<'a>(mut tiles: impl Iterator<Item = &'a [f32; LANES]>, to: &mut [f32]) {
    let (whole, rest) = to.as_chunks_mut();
    for (to, tile) in whole.iter_mut().zip(&mut tiles) {
        *to = *tile;
    }
    if let Some(tile) = tiles.next() {
        rest.copy_from_slice(&tile[..rest.len()]);
    }
}

/// residual + norm(W·x): (rows, outputs).
fn add(machine: Machine<'_>, x: &Activations, linear: &Linear, norm: Option<&Norm>, residual: &[f32]) -> Vec<f32> {
    let width = linear.matrix.rows;
    let add = |residual: &[f32], y: &mut [f32]| y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
    let Some(norm) = norm else {
        return products(machine, x, &[linear], |row, first, y| add(&residual[row * width + first..], y));
    };
    let mut out = products(machine, x, &[linear], |_, _, _| ());
    let rows = out.chunks_mut(ROWS_TOGETHER * width).zip(residual.chunks(ROWS_TOGETHER * width)).collect();
    machine.team.each(rows, |(rows, residual): (&mut [f32], &[f32])| {
        norm.apply(machine, rows);
        add(residual, rows);
    });
    out
}

/// act(gate(x)) · up(x), as `down` needs it.
fn gate_products(
    machine: Machine<'_>,
    x: &Activations,
    [gate, up]: [&Linear; 2],
    activation: Activation,
    down: &Linear,
) -> Activations {
    let mut inner = Activations::zeros(x.rows, &[down]);
    // Two matrices are computed at once, so that a share has half of the groups.
    let shares = Share::of(machine, 2 * x.rows, &[gate]);
    let widths: Vec<usize> = shares.iter().map(Share::width).collect();
    let activate = |share: &Share<'_>| {
        let mut gate = share.compute(machine, x);
        let up = Share { linear: up, groups: share.groups.clone() }.compute(machine, x);
        machine.simd.run(Gate { activation, gate: gate.as_flattened_mut(), up: up.as_flattened() });
        gate
    };
    if inner.blocks.is_empty() {
        let tasks = shares.into_iter().zip(Columns::split(&mut inner.floats, &widths)).collect();
        machine.team.each(tasks, |(share, mut columns): (Share<'_>, Columns<'_, f32>)| {
            let tiles = activate(&share);
            (0..x.rows).for_each(|row| copy_row(tiles[row..].iter().step_by(x.rows), columns.row(row)));
        });
    } else {
        let widths: Vec<usize> = widths.into_iter().map(|width| width / BLOCK).collect();
        let tasks = shares.into_iter().zip(Columns::split(&mut inner.blocks, &widths)).collect();
        machine.team.each(tasks, |(share, blocks): (Share<'_>, Columns<'_, QuantBlock>)| {
            machine.simd.run(QuantizeTiles { tiles: &activate(&share), rows: x.rows, blocks });
        });
    }
    inner
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::kernel::{
        lanes::Simd,
        matrix::tests::{noise, random_matrix},
        team::Team,
    };

    fn assert_near(ours: &Tensor, oracle: &Tensor, tolerance: f32) {
        assert_eq!(ours.dims(), oracle.dims());
        let largest: f32 = oracle.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error <= tolerance * largest, "{error} of {largest}");
    }

    #[test]
    fn projections_are_those_of_plain_framework_operations() {
        let (rows, hidden, team) = (5, 256, Team::new(2).unwrap());
        let machine = Machine { simd: Simd::available()[0], team: &team };
        let x = Tensor::from_vec(noise(rows * hidden, 1), (rows, hidden), &Device::Cpu).unwrap();
        let norm = Norm { gain: noise(hidden, 2), eps: 1e-6 };
        let gain = Tensor::from_slice(&norm.gain, hidden, &Device::Cpu).unwrap();
        for (dtype, tolerance) in [
            (TensorType::F16, 1e-5),
            (TensorType::Q2K, 2e-2),
            (TensorType::Q4K, 2e-2),
            (TensorType::Q8_0, 2e-2),
            (TensorType::MXFP4, 2e-2),
        ] {
            let ((a, a_weight), (b, b_weight)) = (random_matrix(dtype, 24, hidden), random_matrix(dtype, 40, hidden));
            let a = Linear { matrix: a, bias: None };
            let b = Linear { matrix: b, bias: Some(noise(40, 3)) };
            let ours = project(machine, &x, Some(&norm), &[&a, &b]).unwrap();
            let normed = candle_nn::ops::rms_norm(&x, &gain, 1e-6).unwrap();
            let bias = Tensor::from_slice(b.bias.as_ref().unwrap(), 40, &Device::Cpu).unwrap();
            let second = normed.matmul(&b_weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            let first = normed.matmul(&a_weight.t().unwrap()).unwrap();
            assert_near(&ours, &Tensor::cat(&[first, second], 1).unwrap(), tolerance);

            let ours = logits(machine, &x, &norm, &a).unwrap();
            assert_near(&ours, &normed.matmul(&a_weight.t().unwrap()).unwrap(), 1e-4);

            let (down, down_weight) = random_matrix(dtype, hidden, hidden);
            let ours = project_add(machine, &x, &Linear { matrix: down, bias: None }, Some(&norm), &x).unwrap();
            let product = x.matmul(&down_weight.t().unwrap()).unwrap();
            let oracle = (candle_nn::ops::rms_norm(&product, &gain, 1e-6).unwrap() + &x).unwrap();
            assert_near(&ours, &oracle, tolerance);
        }
    }
    #[test]
    fn rows_beyond_the_cache_leave_shares_that_have_groups() {
        let team = Team::new(2).unwrap();
        let machine = Machine { simd: Simd::available()[0], team: &team };
        let linear = Linear { matrix: random_matrix(TensorType::F32, 100, 4).0, bias: None };
        for rows in [1, 300, 1 << 14, 1 << 20] {
            let shares = Share::of(machine, rows, &[&linear, &linear]);
            assert!(shares.iter().all(|share| !share.groups.is_empty()));
            assert_eq!(shares.iter().map(Share::width).sum::<usize>(), 200);
        }
    }
}
