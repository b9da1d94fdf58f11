//! Whether a stage takes longer than its worker's own measurement allows, by the counters that it reports.

use std::time::Duration;

use qmesh_net::StageReport;

use crate::plan::prediction::StepBound;

/// Follows one stage.
#[derive(Debug)]
pub(super) struct Slowness {
    /// What its steps may take; `None` where its worker's speed is not known.
    bound: Option<StepBound>,
    /// Its counters where the steps that are looked at begin.
    since: StageReport,
    /// How often in a row its steps took too long.
    late: u32,
}

impl Slowness {
    pub(super) fn new(bound: Option<StepBound>) -> Self {
        Self { bound, since: StageReport::default(), late: 0 }
    }

    /// Takes in what a stage reports. How many times as long as it should it takes: once, when that has gone on for a while,
    /// and again only if it was well in between.
    pub(super) fn judge(&mut self, report: &StageReport) -> Option<f64> {
        let bound = self.bound?;
        let steps = report.steps.saturating_sub(self.since.steps);
        let compute = Duration::from_micros(report.compute_us.saturating_sub(self.since.compute_us));
        if steps < STEPS || compute < AT_LEAST {
            return None;
        }
        let most = bound.seconds(steps, report.rows.saturating_sub(self.since.rows));
        self.since = report.clone();
        let times = compute.as_secs_f64() / most;
        if times < WELL {
            self.late = 0;
        }
        if times < SLOW {
            return None;
        }
        self.late = self.late.saturating_add(1);
        (self.late == IN_A_ROW).then_some(times)
    }
}

/// Steps that are looked at together, and how long they take together at least: single ones vary.
const STEPS: u64 = 16;
/// See `STEPS`.
const AT_LEAST: Duration = Duration::from_secs(1);
/// So many times the bound is slow: measurements on a machine that does other things differ by less.
const SLOW: f64 = 2.0;
/// Below that a stage is well again.
const WELL: f64 = 1.5;
/// So often in a row it has to be slow: a program that starts beside a worker disturbs it for a second or two.
const IN_A_ROW: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports of a stage whose steps have one row and should take 10 ms: what comes of seconds in which they take so many.
    fn judged(ms: &[u64]) -> Vec<Option<f64>> {
        let bound = StepBound { first_row_ms: 10.0, further_row_ms: 1.0 };
        let (mut slowness, mut report) = (Slowness::new(Some(bound)), StageReport::default());
        let mut second = |ms: &u64| {
            let steps = 1000_u64.div_ceil(*ms).max(STEPS);
            report.steps += steps;
            report.rows += steps;
            report.compute_us += steps * ms * 1000;
            slowness.judge(&report)
        };
        ms.iter().map(&mut second).collect()
    }

    #[test]
    fn only_what_lasts_is_told_and_only_once() {
        assert!(judged(&[10, 19, 40, 40, 14, 40, 40]).iter().all(Option::is_none), "twice in a row at most");
        let told = judged(&[40, 40, 30, 40, 18, 40]);
        assert_eq!(told, [None, None, Some(3.0), None, None, None]);
        let again = judged(&[20, 20, 20, 9, 20, 20, 20]);
        assert_eq!(again.iter().flatten().count(), 2);
    }

    #[test]
    fn rows_have_their_time_and_few_steps_prove_nothing() {
        let bound = StepBound { first_row_ms: 10.0, further_row_ms: 1.0 };
        let mut slowness = Slowness::new(Some(bound));
        let mut report = StageReport::default();
        for _ in 0..5 {
            report = StageReport {
                steps: report.steps + 16,
                rows: report.rows + 16 * 101,
                compute_us: report.compute_us + 16 * 150_000,
                ..report
            };
            assert_eq!(slowness.judge(&report), None, "110 ms of 101 rows are allowed, and 1.4 times that passes");
        }
        report.steps += 15;
        report.compute_us += 15_000_000;
        assert_eq!(slowness.judge(&report), None);
        assert_eq!(Slowness::new(None).judge(&report), None);
    }
}
