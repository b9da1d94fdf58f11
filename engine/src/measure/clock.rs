//! Time on the wall beside time on the CPU: what a thread's work takes, and for how much of the time it may work.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A reading of both clocks, or the time between two readings.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Clock {
    pub(super) wall: Duration,
    /// Of this thread.
    pub(super) cpu: Duration,
}

impl Clock {
    /// Reads both. A system that has no clock of threads counts all time as computing.
    pub(super) fn now() -> Self {
        let read = |id| clock_gettime(id).map(Duration::from);
        let wall = read(ClockId::CLOCK_MONOTONIC).unwrap_or_default();
        Self { wall, cpu: read(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or(wall) }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self { wall: self.wall.saturating_sub(before.wall), cpu: self.cpu.saturating_sub(before.cpu) }
    }
}

/// For which part of the time a thread has a CPU: by windows of one period in which systems dole CPUs out, so that one busy
/// moment does not count.
#[derive(Debug, Default)]
pub(super) struct CpuPart {
    windows: Vec<f64>,
    open: Clock,
}

impl CpuPart {
    /// Some work was done without a break after the one before.
    pub(super) fn add(&mut self, work: Clock) {
        self.open.wall += work.wall;
        self.open.cpu += work.cpu;
        if self.open.wall >= WINDOW {
            self.windows.extend(std::mem::take(&mut self.open).part());
        }
    }

    /// Of the windows; above 0 and at most 1.
    pub(super) fn median(mut self) -> f64 {
        if self.windows.is_empty() {
            self.windows.extend(self.open.part());
        }
        if self.windows.is_empty() { 1.0 } else { median(&self.windows).clamp(f64::MIN_POSITIVE, 1.0) }
    }
}

impl Clock {
    fn part(self) -> Option<f64> {
        (!self.wall.is_zero()).then(|| self.cpu.as_secs_f64() / self.wall.as_secs_f64())
    }
}

/// The value in the middle; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Linux gives a control group its quota of CPU anew after so long.
const WINDOW: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn work(wall_ms: u64, cpu_ms: u64) -> Clock {
        Clock { wall: Duration::from_millis(wall_ms), cpu: Duration::from_millis(cpu_ms) }
    }

    #[test]
    fn a_quota_counts_and_a_busy_moment_does_not() {
        let mut quota = CpuPart::default();
        // Thirty steps of 1 ms, in the last of which the group waits for its next period; and one moment of trouble.
        for _ in 0..5 {
            (0..29).for_each(|_| quota.add(work(1, 1)));
            quota.add(work(71, 1));
        }
        quota.add(work(400, 3));
        assert_eq!(quota.median(), 0.3);
    }

    #[test]
    fn little_work_counts_as_it_is() {
        let mut short = CpuPart::default();
        short.add(work(10, 5));
        assert_eq!(short.median(), 0.5);
        assert_eq!(CpuPart::default().median(), 1.0);
        let mut none = CpuPart::default();
        none.add(work(0, 0));
        assert_eq!(none.median(), 1.0);
    }

    #[test]
    fn the_clocks_go_forward() {
        let before = Clock::now();
        let sum = (0..2_000_000_u64).fold(0, |sum: u64, n| std::hint::black_box(sum.wrapping_mul(31) ^ n));
        let work = Clock::now().since(before);
        assert!(work.cpu > Duration::ZERO && work.wall > Duration::ZERO, "{work:?} {sum}");
    }

    #[test]
    fn the_value_in_the_middle() {
        assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[1.0, 2.0]), median(&[])], [2.0, 2.0, 0.0]);
    }
}
