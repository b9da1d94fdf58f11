//! Step times of a whole model in this process, by rows: what pipelines are held against.

use std::time::{Duration, Instant};

use anyhow::Result;
use qmesh_engine::shard::Shard;

use crate::{
    ideal::StepTable,
    machine::on_cpus,
    model::{self, BenchModel},
    report::{Cell, ReportTable},
    statistics::Samples,
};

/// A whole model, and what its steps took so far.
#[derive(Debug)]
pub struct StepBench {
    shard: Shard,
    cpus: Vec<usize>,
    threads: usize,
    position: usize,
    /// A token of each session.
    first: Vec<u32>,
    measured: Vec<(usize, Samples)>,
}

impl StepBench {
    /// Loads `model` with `threads` on `cpus` (none: anywhere), for steps of up to `rows` rows at `position`.
    ///
    /// # Errors
    /// The model cannot be loaded, or the CPUs are not ours.
    pub fn load(model: &BenchModel, threads: usize, cpus: Vec<usize>, rows: usize, position: usize) -> Result<Self> {
        let (shard, first) = on_cpus(&cpus, || {
            let (mut shard, _) = model.load(rows as u64, position + 1, threads)?;
            let prompts = (0..rows as u64)
                .map(|session| model::prefill(&mut shard, session, 0, &model.prompt(session, position), PROMPT_CHUNK));
            let first = prompts.collect::<Result<Vec<u32>>>()?;
            Ok((shard, first))
        })?;
        let measured = measured_rows(rows).into_iter().map(|rows| (rows, Samples::default())).collect();
        Ok(Self { shard, cpus, threads, position, first, measured })
    }

    /// One more sample of each number of rows; what the longest took a step, in seconds.
    ///
    /// # Errors
    /// Whatever the shard refuses.
    pub fn sample(&mut self) -> Result<f64> {
        let Self { shard, cpus, position, first, measured, .. } = self;
        on_cpus(cpus, || {
            let mut longest = 0.0;
            for (rows, samples) in measured {
                longest = seconds(shard, *position, &first[..*rows])?;
                samples.push(longest);
            }
            Ok(longest)
        })
    }

    /// Threads that it computes with.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Medians so far.
    pub fn table(&self) -> StepTable {
        StepTable::new(self.measured.iter().map(|(rows, samples)| (*rows, samples.median())))
    }

    /// Its rows in the table of [`step_table`].
    pub fn rows(&self, model: &str) -> Vec<Vec<Cell>> {
        let row = |(rows, samples): &(usize, Samples)| {
            let ms = [samples.median(), samples.min(), samples.max()].map(|s| Cell::number(s * 1e3, 2));
            let rate = Cell::number(*rows as f64 / samples.median(), 1);
            let names = [model.into(), Cell::count(self.threads), Cell::count(self.position), Cell::count(*rows)];
            names.into_iter().chain(ms).chain([rate]).collect()
        };
        self.measured.iter().map(row).collect()
    }
}

/// What the ideals are made from, as a table without rows.
pub fn step_table() -> ReportTable {
    let title = "Steps of the whole model in one process, one row a sequence: what the ideals are made from";
    ReportTable::new(title, ["model", "threads", "position", "rows", "ms", "min", "max", "tok/s"])
}

/// Seconds of a step of one row for each of `ids`, the mean of as many as take a while; one before warms up.
fn seconds(shard: &mut Shard, position: usize, ids: &[u32]) -> Result<f64> {
    model::decode(shard, position, ids.to_vec())?;
    let started = Instant::now();
    let mut steps = 0;
    while steps < STEPS_LEAST || started.elapsed() < WHILE {
        model::decode(shard, position, ids.to_vec())?;
        steps += 1;
    }
    Ok(started.elapsed().as_secs_f64() / f64::from(steps))
}

/// Up to `most`, so close that times between them lie on a line.
fn measured_rows(most: usize) -> Vec<usize> {
    let powers = (0..usize::BITS - 1).flat_map(|shift| [1 << shift, 3 << shift]);
    let mut rows: Vec<usize> = powers.take_while(|rows| *rows < most.saturating_mul(2)).filter(|r| *r < most).collect();
    rows.push(most);
    rows.sort_unstable();
    rows
}

const STEPS_LEAST: u32 = 3;
const WHILE: Duration = Duration::from_millis(100);
/// Rows of a step of the prompt.
const PROMPT_CHUNK: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_close_and_end_with_the_most() {
        assert_eq!(measured_rows(1), [1]);
        assert_eq!(measured_rows(8), [1, 2, 3, 4, 6, 8]);
        assert_eq!(measured_rows(20), [1, 2, 3, 4, 6, 8, 12, 16, 20]);
    }
}
