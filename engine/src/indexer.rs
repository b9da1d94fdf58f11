//! Sparse attention: small heads choose the positions that a row attends to, and all heads of the row go over those alone.
//!
//! Chosen positions are gathered, in their order, in pages of their own, so that a row's result follows from them as it would
//! from a session that has no others: it depends neither on the step's other rows nor on who computes it.

use std::ops::Range;

use candle_core::{Result, Tensor};
use qmesh_kernels::{
    Cpu,
    attend::{Attend, Gathered, Normalise, PAGE_POSITIONS, Queries, Target},
    index::{Score, choose},
    rope::RopeTable,
};
use qmesh_models::spec::IndexerSpec;

use crate::{
    attention::tasks::Heads,
    batch::{Batch, Chosen, Slice},
    linear::{Linear, Norm, project},
    ops,
};

/// Weights and shape of one layer's indexer.
#[derive(Debug)]
pub(crate) struct Indexer {
    pub(crate) spec: IndexerSpec,
    /// Which of the shard's RoPE tables it uses.
    pub(crate) rope: usize,
    /// From the latent of the layer's queries.
    pub(crate) queries: Linear,
    pub(crate) key: Linear,
    pub(crate) key_norm: Norm,
    pub(crate) weights: Linear,
}

/// A row of the step whose positions are scored.
struct ScoredRow<'a> {
    slice: &'a Slice,
    /// Of the step.
    row: usize,
    position: usize,
    /// Rotated, head after head.
    queries: Vec<f32>,
}

impl Indexer {
    /// The key of row `row` of the step, which was projected, as it is kept: normalised and rotated.
    pub(crate) fn key(&self, cpu: Cpu<'_>, ropes: &[RopeTable], row: usize, projected: &[f32]) -> Vec<f32> {
        let mut key = projected.to_vec();
        self.key_norm.apply(cpu, &mut key);
        ropes[self.rope].rotate(cpu.simd, row, &mut key, self.spec.head_dim);
        key
    }

    /// What each row attends to, by the latents of queries (rows, rank), which are normed by `norm`, and the heads' weights, which
    /// `weights` gives of a row of the step. The rows' keys are in the cache.
    pub(crate) fn chosen<'a>(
        &self,
        layer: usize,
        batch: &Batch<'_>,
        latents: &Tensor,
        norm: &Norm,
        weights: impl Fn(usize) -> &'a [f32] + Sync,
    ) -> Result<Vec<Chosen>> {
        let queries = project(batch.cpu, latents, Some(norm), &[&self.queries])?;
        ops::read(&queries, |queries| {
            let positions = batch.positions();
            let mut chosen: Vec<_> = positions.iter().map(|position| Chosen::All(position + 1)).collect();
            let rows = self.scored_rows(batch, queries);
            // So many at a time that each thread has the scores of one.
            for rows in rows.chunks(batch.cpu.team.threads()) {
                for (row, positions) in rows.iter().zip(self.of_rows(layer, batch, rows, &weights)) {
                    chosen[row.row] = Chosen::Some(positions);
                }
            }
            chosen
        })
    }

    /// The rows that do not attend to all positions.
    fn scored_rows<'a>(&self, batch: &'a Batch<'_>, queries: &[f32]) -> Vec<ScoredRow<'a>> {
        let width = self.spec.queries();
        let rows = batch.slices.iter().flat_map(|slice| (0..slice.rows).map(move |row| (slice, row)));
        let scored = rows.filter(|(slice, row)| slice.position + row >= self.spec.used);
        let scored = scored.map(|(slice, row)| {
            let (position, row) = (slice.position + row, slice.first + row);
            let mut queries = queries[row * width..][..width].to_vec();
            batch.ropes[self.rope].rotate(batch.cpu.simd, row, &mut queries, self.spec.head_dim);
            ScoredRow { slice, row, position, queries }
        });
        scored.collect()
    }

    /// The positions that some rows attend to: all threads score them, runs of pages at a time, and then each chooses for a row.
    fn of_rows<'a>(
        &self,
        layer: usize,
        batch: &Batch<'_>,
        rows: &[ScoredRow<'_>],
        weights: &(impl Fn(usize) -> &'a [f32] + Sync),
    ) -> Vec<Vec<u32>> {
        let (cpu, pages) = (batch.cpu, |row: &ScoredRow<'_>| row.position / PAGE_POSITIONS + 1);
        let mut scores: Vec<_> = rows.iter().map(|row| vec![0.0; pages(row) * PAGE_POSITIONS]).collect();
        let mut tasks = Vec::new();
        for (row, scores) in rows.iter().zip(&mut scores) {
            let run = pages(row).div_ceil(cpu.team.threads().div_ceil(rows.len()));
            let runs = scores.chunks_mut(run * PAGE_POSITIONS).enumerate();
            tasks.extend(runs.map(|(at, scores)| (row, at * run..pages(row).min((at + 1) * run), scores)));
        }
        cpu.team.each(tasks, |(row, numbers, scores): (&ScoredRow<'_>, Range<usize>, &mut [f32])| {
            let pages = batch.cache.index_keys(layer, &row.slice.pages, numbers);
            for (page, scores) in pages.into_iter().zip(scores.as_chunks_mut().0) {
                Score { queries: &row.queries, weights: weights(row.row), page, scores }.run(cpu.simd);
            }
        });
        let scored = rows.iter().zip(&scores).collect();
        cpu.team
            .map(scored, |(row, scores): (&ScoredRow<'_>, &Vec<f32>)| choose(&scores[..=row.position], self.spec.used))
    }
}

/// Attention of every row to the positions that were last chosen for it; `out` is (rows, heads, value_dim). Of `heads` what is said
/// of runs does not count.
pub(crate) fn attend(heads: &Heads<'_>, batch: &Batch<'_>, out: &mut [f32]) {
    let part = heads.group * batch.cache.layout(heads.layer).value_dim();
    let rows =
        batch.slices.iter().flat_map(|slice| (slice.first..slice.first + slice.rows).map(move |row| (slice, row)));
    let tasks = rows.flat_map(|(slice, row)| (0..heads.groups).map(move |group| (slice, row, group)));
    let tasks = tasks.zip(out.chunks_exact_mut(part)).collect();
    batch.cpu.team.each(tasks, |((slice, row, group), out): ((&Slice, usize, usize), &mut [f32])| {
        let (gathered, count);
        let pages = match &batch.chosen[row] {
            Chosen::All(all) => {
                count = *all;
                batch.cache.head(heads.layer, &slice.pages, 0, 0..all.div_ceil(PAGE_POSITIONS))
            }
            Chosen::Some(positions) => {
                count = positions.len();
                gathered = gather(heads.layer, batch, slice, positions);
                gathered.iter().map(Vec::as_slice).collect()
            }
        };
        attend_one(heads, batch, (row, group), (&pages, count), out);
    });
}

/// Attention of the heads of one group of a row to all `count` positions of `pages`.
pub(crate) fn attend_one(
    heads: &Heads<'_>,
    batch: &Batch<'_>,
    (row, group): (usize, usize),
    (pages, count): (&[&[u16]], usize),
    out: &mut [f32],
) {
    let (layout, simd) = (batch.cache.layout(heads.layer), batch.cpu.simd);
    let x = (heads.queries)(row..row + 1, group);
    let mut gathered = Gathered::start(layout, heads.group, heads.sinks(group));
    let (queries, into) = (Queries { x: &x, heads: heads.group, position: count - 1 }, Target::Merged(&mut gathered));
    Attend { layout, scoring: heads.scoring, queries, pages, first_page: 0, into }.gather(simd);
    Normalise { gathered: &gathered, out: &mut [out], value_dim: layout.value_dim() }.run(simd);
}

/// The rows of these positions, in pages of their own.
fn gather(layer: usize, batch: &Batch<'_>, slice: &Slice, positions: &[u32]) -> Vec<Vec<u16>> {
    let layout = batch.cache.layout(layer);
    let last = positions.last().map_or(0, |last| *last as usize);
    let pages = batch.cache.head(layer, &slice.pages, 0, 0..last / PAGE_POSITIONS + 1);
    let gathered = positions.chunks(PAGE_POSITIONS).map(|positions| {
        let mut page = vec![0; layout.page_len()];
        for (slot, position) in positions.iter().enumerate() {
            let position = *position as usize;
            layout.copy((pages[position / PAGE_POSITIONS], position % PAGE_POSITIONS), (&mut page, slot));
        }
        page
    });
    gathered.collect()
}
