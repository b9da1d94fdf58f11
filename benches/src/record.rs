//! What several runs of the same load on the same pipeline came to.

use anyhow::{Result, ensure};

use crate::{
    clients::{digest, firsts, gaps, steady_s, whole_s},
    pipeline::{LoadRun, Steps},
    report::Cell,
    statistics::Samples,
};

/// Runs of one load on one pipeline.
#[derive(Clone, Debug, Default)]
pub struct LoadRecord {
    /// Seconds a token of all clients together while all decode, one per run.
    pub steady: Samples,
    /// Seconds a token with the prompts' time in it, one per run.
    pub whole: Samples,
    /// Seconds to the first token, of all clients and runs.
    pub firsts: Samples,
    /// Seconds from a token to the next, of all clients and runs.
    pub gaps: Samples,
    /// Milliseconds of a mean step, one per run: computing, on its slowest stage, neither computing nor waiting.
    pub steps_ms: [Samples; 3],
    /// Of all ids.
    pub digest: String,
    /// Runs in which the clients never all decoded at once: their `steady` is their `whole`.
    pub apart: usize,
}

impl LoadRecord {
    /// Adds a run; its seconds a token while all decode.
    ///
    /// # Errors
    /// Its tokens are not those of the run before.
    pub fn push(&mut self, run: &LoadRun) -> Result<f64> {
        let digest = digest(&run.streams);
        ensure!(self.digest.is_empty() || self.digest == digest, "two runs of one load gave different tokens");
        self.digest = digest;
        let whole = whole_s(&run.streams);
        let steady = steady_s(&run.streams);
        let seconds = steady.unwrap_or(whole);
        self.apart += usize::from(steady.is_none());
        self.steady.push(seconds);
        self.whole.push(whole);
        self.firsts.extend(firsts(&run.streams).all().iter().copied());
        self.gaps.extend(gaps(&run.streams).all().iter().copied());
        let Steps { compute_ms, slowest_ms, hops_ms, .. } = run.steps;
        let means = [compute_ms, slowest_ms, hops_ms];
        self.steps_ms.iter_mut().zip(means).for_each(|(samples, ms)| samples.push(ms));
        Ok(seconds)
    }

    /// Tokens a second of all clients together, while all decode.
    pub fn rate(&self) -> f64 {
        1.0 / self.steady.median()
    }

    /// What a step spends neither computing nor waiting for a stage, in seconds.
    pub fn hops_s(&self) -> f64 {
        self.steps_ms[2].median() / 1e3
    }

    /// What a reader must know of runs whose clients never all decoded at once; `what` names the load.
    pub fn warning(&self, what: &str) -> Option<String> {
        let (apart, runs) = (self.apart, self.steady.all().len());
        (apart > 0).then(|| {
            format!("WARNING: {what}: never all decoding at once in {apart} of {runs} runs, whose tok/s is that with prompts; \
                     give more --tokens")
        })
    }

    /// The cells of [`LATENCY_HEADINGS`].
    pub fn latency_cells(&self) -> [Cell; 3] {
        let seconds = [self.firsts.median(), self.gaps.median(), self.gaps.quantile(0.99)];
        seconds.map(|s| Cell::number(s * 1e3, 1))
    }

    /// The cells of [`STEP_HEADINGS`].
    pub fn step_cells(&self) -> [Cell; 3] {
        [0, 1, 2].map(|i| Cell::number(self.steps_ms[i].median(), 2))
    }
}

/// Headings of [`LoadRecord::latency_cells`].
pub const LATENCY_HEADINGS: [&str; 3] = ["TTFT p50 ms", "ITL p50 ms", "ITL p99 ms"];
/// Headings of [`LoadRecord::step_cells`].
pub const STEP_HEADINGS: [&str; 3] = ["compute ms", "slowest ms", "hops ms"];

/// Checks that all records of one load have the same digest, however they were computed.
///
/// # Errors
/// Names the load whose tokens differ.
pub fn same_tokens<'a>(what: &str, records: impl IntoIterator<Item = &'a LoadRecord>) -> Result<()> {
    let mut digests = records.into_iter().map(|record| record.digest.as_str());
    let first = digests.next();
    ensure!(digests.all(|digest| Some(digest) == first), "{what}: different tokens over different pipelines");
    Ok(())
}
