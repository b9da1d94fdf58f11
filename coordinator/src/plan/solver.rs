//! The exact search over contiguous cuts: a dynamic program over (workers considered, layers placed).
//!
//! "Smallest maximum, then smallest sum" has no optimal substructure in one pass, so there are two: the first finds the
//! slowest stage of the best cut, the second the least sum among the cuts that have no slower one. In both, a worker
//! without layers costs more than any time: all that can work do.

use std::ops::Range;

use super::{Capacity, cost::Costs};

/// Layers for one worker (an index into the workers given).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Assignment {
    pub(super) worker: usize,
    pub(super) layers: Range<usize>,
}

/// The best cut, or `None` where no cut fits.
pub(super) fn assign(costs: &Costs<'_>, workers: &[Capacity]) -> Option<Vec<Assignment>> {
    let table = Table::new(costs, workers);
    let slowest = |so_far: Slowest, time: u128| Slowest { time: so_far.time.max(time), ..so_far };
    let (best, _) = table.search(u128::MAX, slowest)?;
    let total =
        |so_far: Total, time: u128| Total { sum: so_far.sum + time, squares: so_far.squares + time * time, ..so_far };
    table.search(best.time, total).map(|(_, assignments)| assignments)
}

/// How good a partial cut is: less is better, fields compared in order. `unused` counts workers without layers.
trait Score: Copy + Default + Ord {
    fn skip(self) -> Self;
}

#[derive(Clone, Copy, Default, Eq, Ord, PartialEq, PartialOrd)]
struct Slowest {
    unused: usize,
    time: u128,
}

#[derive(Clone, Copy, Default, Eq, Ord, PartialEq, PartialOrd)]
struct Total {
    unused: usize,
    sum: u128,
    /// Breaks the ties of equal workers: 8, 8, 7, 7 layers rather than 8, 8, 8, 6.
    squares: u128,
}

impl Score for Slowest {
    fn skip(self) -> Self {
        Self { unused: self.unused + 1, ..self }
    }
}

impl Score for Total {
    fn skip(self) -> Self {
        Self { unused: self.unused + 1, ..self }
    }
}

/// Stage times of every range that fits a worker.
struct Table {
    workers: usize,
    layers: usize,
    /// `times[worker][start]` holds the ranges that fit, in increasing length, with their times.
    times: Vec<Vec<Vec<u128>>>,
}

impl Table {
    fn new(costs: &Costs<'_>, workers: &[Capacity]) -> Self {
        let layers = costs.layers();
        let fitting = |worker: &Capacity, start: usize| {
            (start + 1..=layers)
                .map(|end| start..end)
                .take_while(|layers| costs.footprint(layers, worker.threads).total_bytes() <= worker.memory_bytes)
                .map(|layers| u128::from(costs.work_bytes(&layers)) * TIME_SCALE / u128::from(worker.threads.max(1)))
                .collect()
        };
        let times = workers.iter().map(|w| (0..layers).map(|start| fitting(w, start)).collect()).collect();
        Self { workers: workers.len(), layers, times }
    }

    /// The least score over all cuts without a stage above `limit`.
    fn search<S: Score>(&self, limit: u128, take: impl Fn(S, u128) -> S) -> Option<(S, Vec<Assignment>)> {
        // best[placed] after the workers so far; from[worker][placed] = layers placed before this worker.
        let mut best: Vec<Option<S>> = vec![None; self.layers + 1];
        best[0] = Some(S::default());
        let mut from = Vec::with_capacity(self.workers);
        for times in &self.times {
            let mut next: Vec<Option<S>> = best.iter().map(|score| score.map(S::skip)).collect();
            let mut origin: Vec<usize> = (0..=self.layers).collect();
            for (start, times) in times.iter().enumerate() {
                let Some(score) = best[start] else { continue };
                for (end, &time) in (start + 1..).zip(times) {
                    let candidate = take(score, time);
                    if time <= limit && next[end].is_none_or(|known| candidate < known) {
                        next[end] = Some(candidate);
                        origin[end] = start;
                    }
                }
            }
            best = next;
            from.push(origin);
        }
        best[self.layers].map(|score| (score, self.trace(&from)))
    }

    fn trace(&self, from: &[Vec<usize>]) -> Vec<Assignment> {
        let mut end = self.layers;
        let mut assignments = Vec::new();
        for (worker, origin) in from.iter().enumerate().rev() {
            let start = origin[end];
            if start < end {
                assignments.push(Assignment { worker, layers: start..end });
            }
            end = start;
        }
        assignments.reverse();
        assignments
    }
}

/// Times are bytes over threads in whole numbers, so that equal cuts compare equal; the scale keeps the fraction.
const TIME_SCALE: u128 = 1 << 10;
