//! Latent attention: norm, queries, latents, cache, attention of all heads over the one key head, values, output product
//! and residual.

use std::ops::Range;

use candle_core::{Result, Tensor};
use qmesh_kernels::{
    Cpu,
    attend::{HeadLayout, PAGE_POSITIONS, ScoreRule, Write},
    index::WriteKey,
    rope::RopeTable,
};
use qmesh_models::{
    footprint::head_groups,
    spec::{LatentSpec, Positions, Window},
};

use crate::{
    attention::tasks::{self, Heads},
    batch::{Append, Batch},
    indexer::{self, Indexer},
    linear::{
        Linear, Norm, Residual,
        heads::{HeadWidths, head_products},
        project, project_add,
    },
    ops, temperature,
};

/// Weights and shape of one layer's latent attention.
#[derive(Debug)]
pub(crate) struct LatentAttention {
    pub(crate) spec: LatentSpec,
    /// Which of the shard's layers this is: its place in the cache.
    pub(crate) layer: usize,
    /// Which of the shard's RoPE tables it uses, if any.
    pub(crate) rope: Option<usize>,
    pub(crate) norm: Option<Norm>,
    pub(crate) queries: QueryWeights,
    /// Makes the latent and the rotated key.
    pub(crate) latent: Linear,
    pub(crate) latent_norm: Norm,
    /// Per head, from the plain part of a query to the latent's width.
    pub(crate) keys: Vec<Linear>,
    /// Per head, from the latent to the head's output.
    pub(crate) values: Vec<Linear>,
    pub(crate) output: Linear,
    pub(crate) residual: Residual,
    /// What chooses the positions that rows attend to, where they do not attend to all.
    pub(crate) indexer: Option<Box<Indexer>>,
}

/// What makes queries.
#[derive(Debug)]
pub(crate) enum QueryWeights {
    /// One product.
    Direct(Linear),
    /// A latent of their own.
    Latent { down: Linear, norm: Norm, up: Linear },
}

/// Rows whose rotated parts a thread puts behind their plain ones at a time.
const ROWS_TOGETHER: usize = 4;

impl LatentAttention {
    /// softmax(scale · q·k)·v of x (rows, hidden): (rows, heads · latent_dim). The rows' latents are in the cache afterwards.
    pub(crate) fn attended(&self, x: &Tensor, batch: &mut Batch<'_>) -> Result<Tensor> {
        let cpu = batch.cpu;
        let first = match &self.queries {
            QueryWeights::Direct(linear) => linear,
            QueryWeights::Latent { down, .. } => down,
        };
        let of_indexer = self.indexer.iter().flat_map(|indexer| [&indexer.key, &indexer.weights]);
        let linears: Vec<_> = [first, &self.latent].into_iter().chain(of_indexer).collect();
        let width: usize = linears.iter().map(|linear| linear.matrix.rows).sum();
        let projected = project(cpu, x, self.norm.as_ref(), &linears)?;
        ops::read(&projected, |projected| self.append(batch, projected, width))?;
        let queries = ops::map("queries", &projected, |projected| {
            projected.chunks_exact(width).flat_map(|row| &row[..first.matrix.rows]).copied().collect()
        })?;
        if let (Some(indexer), QueryWeights::Latent { norm, .. }) = (&self.indexer, &self.queries) {
            batch.chosen = ops::read(&projected, |projected| {
                let weights = |row: usize| &projected[(row + 1) * width - indexer.spec.heads..(row + 1) * width];
                indexer.chosen(self.layer, batch, &queries, norm, weights)
            })??;
        }
        drop(projected);
        let queries = match &self.queries {
            QueryWeights::Direct(_) => queries,
            QueryWeights::Latent { norm, up, .. } => project(cpu, &queries, Some(norm), &[up])?,
        };
        ops::map("attend", &queries, |queries| {
            let absorbed = self.absorbed(batch, queries);
            let rows = absorbed.len() / (self.spec.heads * self.spec.key_dim());
            let mut out = vec![0.0; rows * self.spec.heads * self.spec.latent_dim];
            let heads = self.heads(batch, &absorbed, rows);
            match &self.spec.positions {
                Positions::All => tasks::attend(&heads, batch, &mut out),
                Positions::AsBefore | Positions::Chosen(_) => indexer::attend(&heads, batch, &mut out),
            }
            out
        })
    }

    /// x + scale · norm(output(values(attended))): (rows, hidden).
    pub(crate) fn output(&self, cpu: Cpu<'_>, attended: &Tensor, x: &Tensor) -> Result<Tensor> {
        let widths = HeadWidths { input: self.spec.latent_dim, output: self.spec.value_dim };
        let values = ops::map("values", attended, |attended| head_products(cpu, attended, &self.values, widths))?;
        project_add(cpu, &values, &self.output, &self.residual, x)
    }

    /// Writes the rows' latents, normalised, and their rotated keys to the cache, and the indexer's keys.
    fn append(&self, batch: &mut Batch<'_>, projected: &[f32], stride: usize) {
        let (cpu, latent_dim) = (batch.cpu, self.spec.latent_dim);
        let layout = HeadLayout::Shared { key_dim: self.spec.key_dim(), value_dim: latent_dim };
        let index_len = self.indexer.as_ref().map_or(0, |indexer| indexer.spec.row_len());
        batch.append(self.layer, |ropes, Append { row, positions, part }| {
            for (row, position) in (row..).zip(positions) {
                let (rest, of_indexer) = projected[row * stride..][..stride].split_at(stride - index_len);
                let mut key = rest[rest.len() - self.spec.key_dim()..].to_vec();
                self.latent_norm.apply(cpu, &mut key[..latent_dim]);
                self.rotate(cpu, ropes, row, &mut key[latent_dim..]);
                let ((page, index_page), slot) = (part.split_at_mut(layout.page_len()), position % PAGE_POSITIONS);
                Write { layout, page, slot, key: &key, value: &[] }.run(cpu.simd);
                if let Some(indexer) = &self.indexer {
                    let key = indexer.key(cpu, ropes, row, &of_indexer[..indexer.spec.head_dim]);
                    WriteKey { page: index_page, slot, key: &key }.run(cpu.simd);
                }
            }
        });
    }

    /// Queries (rows, heads, plain_dim + rope_dim) as they meet the latents: (rows, heads, latent_dim + rope_dim).
    fn absorbed(&self, batch: &Batch<'_>, queries: &[f32]) -> Vec<f32> {
        let LatentSpec { heads, plain_dim, latent_dim, rope_dim, .. } = self.spec;
        let (query_dim, key_dim) = (self.spec.query_dim(), self.spec.key_dim());
        let widths = HeadWidths { input: query_dim, output: key_dim };
        let mut absorbed = head_products(batch.cpu, queries, &self.keys, widths);
        let positions = batch.positions();
        let together = |dim: usize| ROWS_TOGETHER * heads * dim;
        let tasks = queries.chunks(together(query_dim)).zip(absorbed.chunks_mut(together(key_dim))).enumerate();
        batch.cpu.team.each(tasks.collect(), |(task, (queries, absorbed)): (usize, (&[f32], &mut [f32]))| {
            let rows = queries.chunks(heads * query_dim).zip(absorbed.chunks_mut(heads * key_dim));
            for (row, (queries, absorbed)) in (task * ROWS_TOGETHER..).zip(rows) {
                let parts = queries.chunks_exact(query_dim).flat_map(|query| &query[plain_dim..]);
                let mut rotated: Vec<f32> = parts.copied().collect();
                self.rotate(batch.cpu, &batch.ropes, row, &mut rotated);
                for (rotated, key) in rotated.chunks_exact(rope_dim).zip(absorbed.chunks_exact_mut(key_dim)) {
                    key[latent_dim..].copy_from_slice(rotated);
                }
                if let Some(temperature) = self.spec.temperature {
                    let factor = temperature::factor(temperature, positions[row]);
                    absorbed.iter_mut().for_each(|x| *x *= factor);
                }
            }
        });
        absorbed
    }

    /// Rotates parts of heads in row `row` of the step.
    fn rotate(&self, cpu: Cpu<'_>, ropes: &[RopeTable], row: usize, parts: &mut [f32]) {
        if let Some(rope) = self.rope {
            ropes[rope].rotate(cpu.simd, row, parts, self.spec.rope_dim);
        }
    }

    /// What the team computes. Heads are cut into groups while rows are fewer than threads: a page's latents are widened for
    /// each group, so that these are as large as may be, and gathering from each page alone would take more memory than the
    /// pages.
    fn heads<'a>(&'a self, batch: &Batch<'_>, absorbed: &'a [f32], rows: usize) -> Heads<'a> {
        let LatentSpec { heads, scale, .. } = self.spec;
        let threads = batch.cpu.team.threads();
        let groups = head_groups(heads, threads.div_ceil(rows));
        let (group, key_dim) = (heads / groups, self.spec.key_dim());
        Heads {
            layer: self.layer,
            scoring: ScoreRule { scale, soft_cap: None, window: Window::Full },
            groups,
            group,
            runs: threads.div_ceil(rows * groups),
            sinks: &[],
            queries: Box::new(move |rows: Range<usize>, of: usize| {
                let rows = rows.map(|row| &absorbed[(row * heads + of * group) * key_dim..][..group * key_dim]);
                rows.flatten().copied().collect()
            }),
        }
    }
}
