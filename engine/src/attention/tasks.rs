//! Attention cut into tasks for the team: rows × KV heads, and where those are few, runs of pages.
//!
//! How it is cut changes no bit: a page is always reduced on its own, and pages are merged in increasing position.

use std::{
    cmp::Reverse,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use qmesh_kernels::{
    attend::{Attend, Finish, Gathered, Merge, Queries, Target},
    lanes::Simd,
};
use qmesh_models::footprint::{QUERIES_LEAST, QUERIES_TOGETHER, TASKS_PER_THREAD};

use super::{Attention, Batch, Slice};

/// Queries that share the widening of a page: as many as leave each thread some tasks, so that all end together.
const JOB_QUERIES: [usize; 5] = [QUERIES_TOGETHER, 128, 64, 32, QUERIES_LEAST];
/// Bytes of keys and values that make a run of pages worth a task.
const RUN_BYTES: usize = 64 << 10;
/// Multiplications below which waking the team costs more than it saves.
const SERIAL_PRODUCTS: usize = 1 << 17;

/// Rows of a slice that attend with the heads of one KV head.
struct Job<'a> {
    slice: &'a Slice,
    head: usize,
    /// Of the slice.
    rows: Range<usize>,
    /// What they attend to lies in these.
    pages: Range<usize>,
    /// The pages are cut into so many runs, one task each.
    runs: usize,
    results: Mutex<Results<'a>>,
}

struct Results<'a> {
    /// Per run, what it has gathered.
    runs: Vec<Option<Gathered>>,
    /// Per row (heads of the KV head, head_dim).
    out: Vec<&'a mut [f32]>,
}

/// Attention of all rows over what is in the cache; `out` is (rows, heads, head_dim).
pub(super) fn attend(attention: &Attention, batch: &Batch<'_>, qkv: &[f32], out: &mut [f32]) {
    let layout = batch.cache.layout(attention.layer);
    let mut jobs = jobs(attention, batch, out);
    let products = |job: &Job<'_>| job.rows.len() * attention.group() * job.pages.len() * layout.page_len();
    let total: usize = jobs.iter().map(products).sum();
    // The longest first: short ones fill up the end.
    jobs.sort_by_key(|job| Reverse(products(job)));
    let tasks: Vec<_> = jobs.iter().flat_map(|job| (0..job.runs).map(move |run| (job, run))).collect();
    let work = |(job, run): (&Job<'_>, usize)| job.run(attention, batch, qkv, run);
    if total < SERIAL_PRODUCTS {
        tasks.into_iter().for_each(work);
    } else {
        batch.cpu.team.each(tasks, work);
    }
}

fn jobs<'a>(attention: &Attention, batch: &'a Batch<'_>, out: &'a mut [f32]) -> Vec<Job<'a>> {
    let (group, kv_heads, threads) = (attention.group(), attention.spec.kv_heads, batch.cpu.team.threads());
    let wanted = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    let rows = |queries: usize| (queries / group).max(1);
    let count = |queries: usize| batch.slices.iter().map(|s| s.rows.div_ceil(rows(queries)) * kv_heads).sum::<usize>();
    let [.., fewest] = JOB_QUERIES;
    let rows_per_job = rows(JOB_QUERIES.into_iter().find(|queries| count(*queries) >= wanted).unwrap_or(fewest));
    let runs = wanted.div_ceil(count(fewest).max(1));
    let page_bytes = 2 * batch.cache.layout(attention.layer).page_len();

    let part = group * attention.spec.head_dim;
    let mut out_rows = out.chunks_exact_mut(kv_heads * part);
    let mut jobs = Vec::new();
    for slice in &batch.slices {
        for first in (0..slice.rows).step_by(rows_per_job) {
            let rows = first..slice.rows.min(first + rows_per_job);
            let pages = attention.scoring().pages(slice.position + rows.start..slice.position + rows.end);
            let runs = runs.min(pages.len() * page_bytes / RUN_BYTES).max(1);
            let mut outs: Vec<_> = (0..kv_heads).map(|_| Vec::with_capacity(rows.len())).collect();
            for row in out_rows.by_ref().take(rows.len()) {
                row.chunks_exact_mut(part).zip(&mut outs).for_each(|(part, out)| out.push(part));
            }
            jobs.extend(outs.into_iter().enumerate().map(|(head, out)| {
                let results = Mutex::new(Results { runs: (0..runs).map(|_| None).collect(), out });
                Job { slice, head, rows: rows.clone(), pages: pages.clone(), runs, results }
            }));
        }
    }
    jobs
}

impl Job<'_> {
    /// Computes one run; whoever finishes the last one merges them all.
    fn run(&self, attention: &Attention, batch: &Batch<'_>, qkv: &[f32], run: usize) {
        let (layout, simd) = (batch.cache.layout(attention.layer), batch.cpu.simd);
        let cut = |run: usize| self.pages.start + self.pages.len() * run / self.runs;
        let pages = batch.cache.head(attention.layer, &self.slice.pages, self.head, cut(run)..cut(run + 1));
        let x = self.queries(attention, batch, qkv);
        let count = x.len() / layout.head_dim;
        // The first run has nothing to wait for: it merges its pages as they come.
        let mut gathered = match run {
            0 => Gathered::start(layout, count, attention.sinks(self.head)),
            _ => Gathered::new(layout, count, pages.len()),
        };
        Attend {
            layout,
            scoring: attention.scoring(),
            queries: Queries { x: &x, heads: attention.group(), position: self.slice.position + self.rows.start },
            pages: &pages,
            first_page: cut(run),
            into: if run == 0 { Target::Merged(&mut gathered) } else { Target::Apart(&mut gathered) },
        }
        .gather(simd);
        // A result is stored whole or not at all.
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.runs[run] = Some(gathered);
        if results.runs.iter().all(Option::is_some) {
            results.finish(simd, layout.head_dim);
        }
    }

    /// Normalised and rotated: (rows, heads of the KV head, head_dim).
    fn queries(&self, attention: &Attention, batch: &Batch<'_>, qkv: &[f32]) -> Vec<f32> {
        let ((q_width, k_width), part) = (attention.widths(), attention.group() * attention.spec.head_dim);
        let rows = self.slice.first + self.rows.start..self.slice.first + self.rows.end;
        let mut queries = Vec::with_capacity(rows.len() * part);
        for row in rows.clone() {
            let (row, heads) = (&qkv[row * (q_width + 2 * k_width)..], self.head * attention.group()..);
            heads.take(attention.group()).for_each(|head| queries.extend_from_slice(attention.query(row, head)));
        }
        attention.normalize_heads(batch.cpu, 0, &mut queries);
        for (row, heads) in rows.zip(queries.chunks_exact_mut(part)) {
            attention.rotate(batch.cpu, &batch.ropes, row, heads);
        }
        queries
    }
}

impl Results<'_> {
    fn finish(&mut self, simd: Simd, head_dim: usize) {
        let mut runs = self.runs.iter_mut().flatten();
        let Some(first) = runs.next() else { return };
        for later in runs {
            Merge { into: first, later }.run(simd);
        }
        Finish { gathered: first, out: &mut self.out, head_dim }.run(simd);
    }
}
