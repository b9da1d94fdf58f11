//! Attention cut into tasks for the team: rows × groups of heads, and where those are few, runs of pages.
//!
//! How it is cut changes no bit: a page is always reduced on its own, and pages are merged in increasing position.

use std::{
    cmp::Reverse,
    ops::Range,
    sync::{Mutex, PoisonError},
};

use qmesh_kernels::{
    attend::{Attend, Gathered, Merge, Normalise, Queries, ScoreRule, Target},
    lanes::Simd,
};
use qmesh_models::footprint::{QUERIES_LEAST, QUERIES_TOGETHER, TASKS_PER_THREAD};

use crate::batch::{Batch, Slice};

/// Queries that share the widening of a page: as many as leave each thread some tasks, so that all end together.
const JOB_QUERIES: [usize; 5] = [QUERIES_TOGETHER, 128, 64, 32, QUERIES_LEAST];
/// Bytes of keys and values that make a run of pages worth a task.
const RUN_BYTES: usize = 64 << 10;
/// Multiplications below which waking the team costs more than it saves.
const SERIAL_PRODUCTS: usize = 1 << 17;

/// The query heads of a layer, in groups that attend together: those of a group share a KV head.
pub(crate) struct Heads<'a> {
    /// Which of the shard's layers this is.
    pub(crate) layer: usize,
    pub(crate) scoring: ScoreRule,
    /// How many groups there are; as many of them belong to each KV head.
    pub(crate) groups: usize,
    /// Heads of a group.
    pub(crate) group: usize,
    /// Pages may be cut into so many runs, one task each.
    pub(crate) runs: usize,
    /// A score of each head that belongs to no position, or nothing.
    pub(crate) sinks: &'a [f32],
    /// The queries of some rows of the step and of a group: (rows, heads of the group, key_dim).
    pub(crate) queries: Box<dyn Fn(Range<usize>, usize) -> Vec<f32> + Sync + 'a>,
}

/// Tasks that keep so many threads busy until the end.
pub(crate) fn wanted(threads: usize) -> usize {
    if threads == 1 { 1 } else { threads * TASKS_PER_THREAD }
}

/// Rows of a slice that attend with the heads of one group.
struct Job<'a> {
    slice: &'a Slice,
    group: usize,
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
    /// Per row (heads of the group, value_dim).
    out: Vec<&'a mut [f32]>,
}

/// Attention of all rows over what is in the cache; `out` is (rows, heads, value_dim).
pub(crate) fn attend(heads: &Heads<'_>, batch: &Batch<'_>, out: &mut [f32]) {
    let layout = batch.cache.layout(heads.layer);
    let mut jobs = jobs(heads, batch, out);
    let products = |job: &Job<'_>| job.rows.len() * heads.group * job.pages.len() * layout.page_len();
    let total: usize = jobs.iter().map(products).sum();
    // The longest first: short ones fill up the end.
    jobs.sort_by_key(|job| Reverse(products(job)));
    let tasks: Vec<_> = jobs.iter().flat_map(|job| (0..job.runs).map(move |run| (job, run))).collect();
    let work = |(job, run): (&Job<'_>, usize)| job.run(heads, batch, run);
    if total < SERIAL_PRODUCTS {
        tasks.into_iter().for_each(work);
    } else {
        batch.cpu.team.each(tasks, work);
    }
}

fn jobs<'a>(heads: &Heads<'_>, batch: &'a Batch<'_>, out: &'a mut [f32]) -> Vec<Job<'a>> {
    let Heads { groups, group, .. } = *heads;
    let (layout, wanted) = (batch.cache.layout(heads.layer), wanted(batch.cpu.team.threads()));
    let rows = |queries: usize| (queries / group).max(1);
    let count = |queries: usize| batch.slices.iter().map(|s| s.rows.div_ceil(rows(queries)) * groups).sum::<usize>();
    let [.., fewest] = JOB_QUERIES;
    let rows_per_job = rows(JOB_QUERIES.into_iter().find(|queries| count(*queries) >= wanted).unwrap_or(fewest));
    let page_bytes = 2 * layout.page_len();

    let part = group * layout.value_dim();
    let mut out_rows = out.chunks_exact_mut(groups * part);
    let mut jobs = Vec::new();
    for slice in &batch.slices {
        for first in (0..slice.rows).step_by(rows_per_job) {
            let rows = first..slice.rows.min(first + rows_per_job);
            let pages = heads.scoring.pages(slice.position + rows.start..slice.position + rows.end);
            let runs = heads.runs.min(pages.len() * page_bytes / RUN_BYTES).max(1);
            let mut outs: Vec<_> = (0..groups).map(|_| Vec::with_capacity(rows.len())).collect();
            for row in out_rows.by_ref().take(rows.len()) {
                row.chunks_exact_mut(part).zip(&mut outs).for_each(|(part, out)| out.push(part));
            }
            jobs.extend(outs.into_iter().enumerate().map(|(group, out)| {
                let results = Mutex::new(Results { runs: (0..runs).map(|_| None).collect(), out });
                Job { slice, group, rows: rows.clone(), pages: pages.clone(), runs, results }
            }));
        }
    }
    jobs
}

impl Job<'_> {
    /// Computes one run; whoever finishes the last one merges them all.
    fn run(&self, heads: &Heads<'_>, batch: &Batch<'_>, run: usize) {
        let (layout, simd) = (batch.cache.layout(heads.layer), batch.cpu.simd);
        let cut = |run: usize| self.pages.start + self.pages.len() * run / self.runs;
        let kv_head = self.group * batch.cache.heads(heads.layer) / heads.groups;
        let pages = batch.cache.head(heads.layer, &self.slice.pages, kv_head, cut(run)..cut(run + 1));
        let x = (heads.queries)(self.slice.first + self.rows.start..self.slice.first + self.rows.end, self.group);
        let count = x.len() / layout.key_dim();
        // The first run has nothing to wait for: it merges its pages as they come.
        let mut gathered = match run {
            0 => Gathered::start(layout, count, heads.sinks(self.group)),
            _ => Gathered::new(layout, count, pages.len()),
        };
        Attend {
            layout,
            scoring: heads.scoring,
            queries: Queries { x: &x, heads: heads.group, position: self.slice.position + self.rows.start },
            pages: &pages,
            first_page: cut(run),
            into: if run == 0 { Target::Merged(&mut gathered) } else { Target::Apart(&mut gathered) },
        }
        .gather(simd);
        // A result is stored whole or not at all.
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.runs[run] = Some(gathered);
        if results.runs.iter().all(Option::is_some) {
            results.finish(simd, layout.value_dim());
        }
    }
}

impl Heads<'_> {
    /// Sinks of a group's heads.
    pub(crate) fn sinks(&self, group: usize) -> &[f32] {
        self.sinks.chunks(self.group).nth(group).unwrap_or_default()
    }
}

impl Results<'_> {
    fn finish(&mut self, simd: Simd, value_dim: usize) {
        let mut runs = self.runs.iter_mut().flatten();
        let Some(first) = runs.next() else { return };
        for later in runs {
            Merge { into: first, later }.run(simd);
        }
        Normalise { gathered: first, out: &mut self.out, value_dim }.run(simd);
    }
}
