//! The computing times of a stage's last steps, as people want them: what half of them and what nearly all of them took.

use std::{collections::VecDeque, time::Duration};

use qmesh_net::RecentSteps;

/// The last [`STEPS`] times.
#[derive(Debug, Default)]
pub(super) struct RecentTimes(VecDeque<u32>);

impl RecentTimes {
    /// A step has taken so long; the oldest is forgotten.
    pub(super) fn push(&mut self, time: Duration) {
        if self.0.len() == STEPS {
            self.0.pop_front();
        }
        self.0.push_back(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    /// Half of the times and 95 of 100 of them are at most so long, by the nearest rank; `None` before the first step.
    pub(super) fn summary(&self) -> Option<RecentSteps> {
        let mut sorted: Vec<u32> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let percentile = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        let steps = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
        Some(RecentSteps { steps, p50_us: percentile(50)?, p95_us: percentile(95)? })
    }
}

/// Some seconds of a quick stage, a minute of a slow one; sorted once a second, in microseconds.
const STEPS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_half_and_nearly_all_of_the_last_steps_took() {
        let mut times = RecentTimes::default();
        assert_eq!(times.summary(), None);
        times.push(Duration::from_micros(7));
        assert_eq!(times.summary(), Some(RecentSteps { steps: 1, p50_us: 7, p95_us: 7 }));
        // In no order: of 1 to 100, and 7 once more.
        for n in 0..100 {
            times.push(Duration::from_micros(1 + n * 37 % 100));
        }
        assert_eq!(times.summary(), Some(RecentSteps { steps: 101, p50_us: 50, p95_us: 95 }));
        // One in ten takes ten times as long, and what was before is forgotten.
        for n in 0..STEPS {
            times.push(Duration::from_millis(if n % 10 == 0 { 100 } else { 10 }));
        }
        assert_eq!(times.summary(), Some(RecentSteps { steps: 256, p50_us: 10_000, p95_us: 100_000 }));
        times.push(Duration::from_secs(1 << 40));
        assert_eq!(times.summary().map(|recent| recent.steps), Some(256));
    }
}
