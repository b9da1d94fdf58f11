//! Products with weights, with what belongs to them: the norm before, the bias, the gate, the norm and residual after.
//!
//! Each function is one fork and join of the team per product: a task takes some groups of outputs through the product
//! and everything that follows it element by element, while the outputs are in its cache.

mod activations;
pub(crate) mod both;
pub(crate) mod experts;
pub(crate) mod heads;

use std::{ops::Range, sync::Arc};

use candle_core::{Result, Tensor};
use qmesh_kernels::{
    Cpu,
    columns::Columns,
    lanes::LANES,
    math::{GatedActivation, SoftCap},
    matrix::Matrix,
    norm::{LayerNorm, RmsNorm},
    product::Product,
    quantize::{BLOCK, QuantBlock, QuantizeTiles},
};
use qmesh_models::{footprint::TILE_BYTES, spec::Activation};

use self::activations::Activations;
use crate::ops;

/// A norm: a layer norm where it has a bias, an RMS norm where it has none.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) gain: Arc<[f32]>,
    pub(crate) bias: Option<Arc<[f32]>>,
    pub(crate) eps: f32,
}

/// A weight matrix and its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Arc<[f32]>>,
}

/// down(act(gate(x)) · up(x)), or down(act(gate(x))) where there is no `up`.
#[derive(Debug)]
pub(crate) struct Gated {
    pub(crate) activation: Activation,
    pub(crate) gate: Linear,
    pub(crate) up: Option<Linear>,
    pub(crate) down: Linear,
}

/// Rows that a thread takes at a time.
const ROWS_TOGETHER: usize = 8;

/// How a half's output is added to the hidden state: hidden + scale · norm(output).
#[derive(Debug)]
pub(crate) struct Residual {
    pub(crate) norm: Option<Norm>,
    pub(crate) scale: f32,
}

/// What products with the head's matrix go through: x becomes scale · x, then cap · tanh(x / cap) where there is a cap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogitScaling {
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
}

impl Norm {
    /// Normalises rows in place; `rows` may also be heads.
    pub(crate) fn apply(&self, cpu: Cpu<'_>, rows: &mut [f32]) {
        let Self { gain, bias, eps } = self;
        match bias {
            None => RmsNorm { x: rows, gain, eps: *eps }.run(cpu.simd),
            Some(bias) => LayerNorm { x: rows, gain, bias, eps: *eps }.run(cpu.simd),
        }
    }
}

/// The products of the (normalised) rows of `x` with each matrix, side by side: (rows, all outputs).
pub(crate) fn project(cpu: Cpu<'_>, x: &Tensor, norm: Option<&Norm>, linears: &[&Linear]) -> Result<Tensor> {
    ops::map("project", x, |x| {
        let x = Activations::new(cpu, x, norm, linears);
        products(cpu, &x, linears, |_, _, _| ())
    })
}

/// The products of the normalised rows of `x` with the head's matrix, scaled: (rows, vocab). What rounding these
/// activations costs goes straight into the logits, and their rows are few: they are taken as the sum of two int8 terms, a
/// row each.
pub(crate) fn logits(
    cpu: Cpu<'_>,
    x: &Tensor,
    norm: &Norm,
    head: &Linear,
    LogitScaling { scale, soft_cap }: LogitScaling,
) -> Result<Tensor> {
    ops::map("logits", x, |x| {
        let x = Activations::in_two_terms(cpu, x, norm, head);
        products(cpu, &x, &[head], |_, _, logits| {
            logits.iter_mut().for_each(|x| *x *= scale);
            if let Some(cap) = soft_cap {
                SoftCap { x: logits, cap }.run(cpu.simd);
            }
        })
    })
}

/// hidden + scale · norm(W·x): (rows, hidden).
pub(crate) fn project_add(
    cpu: Cpu<'_>,
    x: &Tensor,
    linear: &Linear,
    residual: &Residual,
    hidden: &Tensor,
) -> Result<Tensor> {
    ops::map2("project_add", x, hidden, |x, hidden| {
        add(cpu, &Activations::new(cpu, x, None, &[linear]), linear, residual, hidden)
    })
}

/// sum + scale · norm(down(act(gate(norm(x))) · up(norm(x)))): (rows, hidden).
pub(crate) fn gated(
    cpu: Cpu<'_>,
    x: &Tensor,
    before: Option<&Norm>,
    gated: &Gated,
    residual: &Residual,
    sum: &Tensor,
) -> Result<Tensor> {
    ops::map2("gated", x, sum, |x, sum| {
        let inputs = Activations::new(cpu, x, before, &gated.inputs());
        let inner = inner_products(cpu, &[(gated, inputs)]); // (rows, inner)
        add(cpu, &inner[0], &gated.down, residual, sum)
    })
}

impl Norm {
    /// Normalises rows in place, all threads together.
    fn apply_together(&self, cpu: Cpu<'_>, rows: &mut [f32]) {
        let some = rows.chunks_mut(ROWS_TOGETHER * self.gain.len()).collect();
        cpu.team.each(some, |rows: &mut [f32]| self.apply(cpu, rows));
    }
}

impl Gated {
    /// The matrices that take the half's input.
    fn inputs(&self) -> Vec<&Linear> {
        std::iter::once(&self.gate).chain(&self.up).collect()
    }
}

/// Some groups of outputs of one matrix.
struct Share<'a> {
    linear: &'a Linear,
    groups: Range<usize>,
}

impl<'a> Share<'a> {
    /// All groups of `linears` in shares of an even number of groups.
    fn of(cpu: Cpu<'_>, rows: usize, linears: &[&'a Linear]) -> Vec<Self> {
        let len = Self::len(cpu, rows, linears.iter().map(|l| l.matrix.groups()).sum());
        linears.iter().flat_map(|linear| Self::cut(linear, len)).collect()
    }

    /// Groups to a share: enough shares that no thread waits long for another, and few enough rows at a time that their
    /// outputs stay in the L2 cache.
    fn len(cpu: Cpu<'_>, rows: usize, groups: usize) -> usize {
        let cached = TILE_BYTES / (rows * LANES * size_of::<f32>());
        groups.div_ceil(4 * cpu.team.threads()).min(cached).max(1).next_multiple_of(2)
    }

    fn cut(linear: &'a Linear, len: usize) -> impl Iterator<Item = Self> {
        let groups = linear.matrix.groups();
        (0..groups).step_by(len).map(move |first| Share { linear, groups: first..groups.min(first + len) })
    }

    /// Outputs, without what fills the last group up.
    fn width(&self) -> usize {
        self.outputs().len()
    }

    fn outputs(&self) -> Range<usize> {
        self.groups.start * LANES..self.linear.matrix.rows.min(self.groups.end * LANES)
    }

    /// The outputs with their bias: (groups, terms, rows, 16), of which the first of the terms is their sum.
    fn compute(&self, cpu: Cpu<'_>, x: &Activations) -> Vec<[f32; LANES]> {
        let mut tiles = vec![[0.0; LANES]; self.groups.len() * x.terms * x.rows];
        let (matrix, groups) = (&self.linear.matrix, self.groups.clone());
        Product { matrix, groups, x: x.inputs(), out: &mut tiles }.run(cpu.simd);
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

    /// Writes the outputs of rows that are no sums, each row's to its part of `columns`.
    fn write(&self, cpu: Cpu<'_>, x: &Activations, columns: &mut Columns<'_, f32>) {
        let tiles = self.compute(cpu, x);
        (0..x.rows).for_each(|row| copy_row(tiles[row..].iter().step_by(x.rows), columns.row(row)));
    }
}

/// The products of all rows with each matrix, side by side: (rows, all outputs). `finish` is given each share's part of
/// each row: the row, the first of the outputs, and their values.
fn products(
    cpu: Cpu<'_>,
    x: &Activations,
    linears: &[&Linear],
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let shares = Share::of(cpu, x.terms * x.rows, linears);
    let widths: Vec<usize> = shares.iter().map(Share::width).collect();
    let mut out = vec![0.0; x.rows * widths.iter().sum::<usize>()];
    let tasks = shares.into_iter().zip(Columns::split(&mut out, &widths)).collect();
    cpu.team.each(tasks, |(share, mut columns): (Share<'_>, Columns<'_, f32>)| {
        let tiles = share.compute(cpu, x);
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

/// hidden + scale · norm(W·x): (rows, outputs).
fn add(cpu: Cpu<'_>, x: &Activations, linear: &Linear, residual: &Residual, hidden: &[f32]) -> Vec<f32> {
    let width = linear.matrix.rows;
    if residual.norm.is_none() {
        return products(cpu, x, &[linear], |row, first, y| {
            residual.add(&hidden[row * width + first..], y);
        });
    }
    let mut out = products(cpu, x, &[linear], |_, _, _| ());
    residual.apply(cpu, &mut out, hidden, width);
    out
}

impl Residual {
    /// out ← hidden + scale · norm(out), rows of `width`.
    fn apply(&self, cpu: Cpu<'_>, out: &mut [f32], hidden: &[f32], width: usize) {
        let rows = out.chunks_mut(ROWS_TOGETHER * width).zip(hidden.chunks(ROWS_TOGETHER * width)).collect();
        cpu.team.each(rows, |(rows, hidden): (&mut [f32], &[f32])| {
            if let Some(norm) = &self.norm {
                norm.apply(cpu, rows);
            }
            self.add(hidden, rows);
        });
    }

    fn add(&self, hidden: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(hidden).for_each(|(y, h)| *y = self.scale * *y + h);
    }
}

/// Where a share's activated outputs go.
enum Target<'a> {
    Floats(Columns<'a, f32>),
    Blocks(Columns<'a, QuantBlock>),
}

/// act(gate(x)) · up(x) of each, as its `down` needs it.
fn inner_products(cpu: Cpu<'_>, halves: &[(&Gated, Activations)]) -> Vec<Activations> {
    let mut inner: Vec<_> = halves.iter().map(|(half, x)| Activations::zeros(x.rows, &[&half.down])).collect();
    // Two matrices are computed at once, so that a share has half of the groups.
    let rows = halves.iter().map(|(_, x)| 2 * x.rows).max().unwrap_or(1);
    let len = Share::len(cpu, rows, halves.iter().map(|(half, _)| half.gate.matrix.groups()).sum());
    let mut tasks = Vec::new();
    for ((half, x), inner) in halves.iter().zip(&mut inner) {
        let shares: Vec<_> = Share::cut(&half.gate, len).collect();
        let widths = shares.iter().map(Share::width);
        let targets: Vec<_> = if inner.blocks.is_empty() {
            let widths: Vec<_> = widths.collect();
            Columns::split(&mut inner.floats, &widths).into_iter().map(Target::Floats).collect()
        } else {
            let widths: Vec<_> = widths.map(|width| width / BLOCK).collect();
            Columns::split(&mut inner.blocks, &widths).into_iter().map(Target::Blocks).collect()
        };
        tasks.extend(shares.into_iter().zip(targets).map(|(share, target)| (*half, x, share, target)));
    }
    cpu.team.each(tasks, |(half, x, share, target): (&Gated, &Activations, Share<'_>, Target<'_>)| {
        let tiles = half.activated(cpu, x, &share);
        match target {
            Target::Floats(mut columns) => {
                (0..x.rows).for_each(|row| copy_row(tiles[row..].iter().step_by(x.rows), columns.row(row)));
            }
            Target::Blocks(blocks) => QuantizeTiles { tiles: &tiles, rows: x.rows, blocks }.run(cpu.simd),
        }
    });
    inner
}

impl Gated {
    /// One share of act(gate(x)) · up(x): (groups, rows, 16).
    fn activated(&self, cpu: Cpu<'_>, x: &Activations, share: &Share<'_>) -> Vec<[f32; LANES]> {
        let mut gate = share.compute(cpu, x);
        let up = self.up.as_ref().map(|linear| Share { linear, groups: share.groups.clone() }.compute(cpu, x));
        let (activation, up) = (self.activation, up.as_ref().map(|up| up.as_flattened()));
        GatedActivation { activation, gate: gate.as_flattened_mut(), up }.run(cpu.simd);
        gate
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::tensor::TensorType;

    use qmesh_kernels::lanes::Simd;
    use qmesh_team::Team;

    use super::*;
    use crate::random::{noise, random_matrix};

    fn assert_near(ours: &Tensor, oracle: &Tensor, tolerance: f32) {
        assert_eq!(ours.dims(), oracle.dims());
        let largest: f32 = oracle.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error <= tolerance * largest, "{error} of {largest}");
    }

    #[test]
    fn projections_are_those_of_plain_framework_operations() {
        let (rows, hidden, team) = (5, 256, Team::new(2).unwrap());
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = Tensor::from_vec(noise(rows * hidden, 1), (rows, hidden), &Device::Cpu).unwrap();
        let norm = || Norm { gain: noise(hidden, 2).into(), bias: None, eps: 1e-6 };
        let (norm, residual) = (norm(), Residual { norm: Some(norm()), scale: 0.5 });
        let gain = Tensor::from_slice(&norm.gain[..], hidden, &Device::Cpu).unwrap();
        for (dtype, tolerance) in [
            (TensorType::F16, 1e-5),
            (TensorType::Q2K, 2e-2),
            (TensorType::Q4K, 2e-2),
            (TensorType::Q8_0, 2e-2),
            (TensorType::MXFP4, 2e-2),
        ] {
            let ((a, a_weight), (b, b_weight)) = (random_matrix(dtype, 24, hidden), random_matrix(dtype, 40, hidden));
            let a = Linear { matrix: a, bias: None };
            let b = Linear { matrix: b, bias: Some(noise(40, 3).into()) };
            let ours = project(cpu, &x, Some(&norm), &[&a, &b]).unwrap();
            let normed = candle_nn::ops::rms_norm(&x, &gain, 1e-6).unwrap();
            let bias = Tensor::from_slice(&b.bias.as_ref().unwrap()[..], 40, &Device::Cpu).unwrap();
            let second = normed.matmul(&b_weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            let first = normed.matmul(&a_weight.t().unwrap()).unwrap();
            assert_near(&ours, &Tensor::cat(&[first, second], 1).unwrap(), tolerance);

            let scaling = LogitScaling { scale: 0.25, soft_cap: None };
            let ours = logits(cpu, &x, &norm, &a, scaling).unwrap();
            let logits = (normed.matmul(&a_weight.t().unwrap()).unwrap() * 0.25).unwrap();
            assert_near(&ours, &logits, 1e-4);

            let (down, down_weight) = random_matrix(dtype, hidden, hidden);
            let down = Linear { matrix: down, bias: None };
            let ours = project_add(cpu, &x, &down, &residual, &x).unwrap();
            let product = x.matmul(&down_weight.t().unwrap()).unwrap();
            let oracle = (candle_nn::ops::rms_norm(&product, &gain, 1e-6).unwrap() * 0.5 + &x).unwrap();
            assert_near(&ours, &oracle, tolerance);
        }
    }
    #[test]
    fn rows_beyond_the_cache_leave_shares_that_have_groups() {
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let linear = Linear { matrix: random_matrix(TensorType::F32, 100, 4).0, bias: None };
        for rows in [1, 300, 1 << 14, 1 << 20] {
            let shares = Share::of(cpu, rows, &[&linear, &linear]);
            assert!(shares.iter().all(|share| !share.groups.is_empty()));
            assert_eq!(shares.iter().map(Share::width).sum::<usize>(), 200);
        }
    }
}
