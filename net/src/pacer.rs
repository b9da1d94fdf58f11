//! How fast weights may leave: as fast as the link carries them, but slowly while steps run.
//!
//! A stream's priority orders what this machine has not sent yet. What already stands in the queues of the network goes in
//! its order, so a transfer that fills them delays every activation behind it. Only sending less keeps them short.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Bytes a second that leave while steps run: some two thirds of a link of 100 Mbit/s.
pub const BUSY_BYTES_PER_SECOND: u64 = 8 << 20;
/// Bytes that may leave at once after a pause.
const BURST_BYTES: u64 = 1 << 20;
/// How long after a step others are expected to follow.
const QUIET: Duration = Duration::from_secs(1);

/// A rate limit that holds only while steps run. It has no clock: whoever asks says what time it is.
#[derive(Debug)]
pub struct Pacer {
    last_step: Option<Instant>,
    limit: RateLimit,
}

/// A token bucket: so many bytes a second, with a burst of 1 MiB after a pause. It has no clock either.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// When all that was let through would have left at the rate.
    paid_until: Option<Instant>,
}

impl RateLimit {
    /// A limit that nothing has been let through yet.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_until: None }
    }

    /// How long so many bytes are to wait before they leave. They count as sent: whoever asks sends them then.
    pub fn delay(&mut self, now: Instant, bytes: u64) -> Duration {
        let earliest = now.checked_sub(self.time_of(BURST_BYTES)).unwrap_or(now);
        let paid_until = self.paid_until.map_or(earliest, |paid| paid.max(earliest)) + self.time_of(bytes);
        self.paid_until = Some(paid_until);
        paid_until.saturating_duration_since(now)
    }

    /// The time that so many bytes take at the rate.
    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64)
    }
}

impl Default for Pacer {
    fn default() -> Self {
        Self { last_step: None, limit: RateLimit::new(BUSY_BYTES_PER_SECOND) }
    }
}

impl Pacer {
    /// A step runs, or a frame of one passes.
    pub fn stepped(&mut self, now: Instant) {
        self.last_step = Some(now);
    }

    /// How long so many bytes are to wait before they leave for there. They count as sent: whoever asks sends them then.
    /// Inside this machine nothing has to be left free.
    pub fn delay(&mut self, to: SocketAddr, now: Instant, bytes: u64) -> Duration {
        if to.ip().to_canonical().is_loopback() {
            return Duration::ZERO;
        }
        let busy = self.last_step.is_some_and(|last| now.saturating_duration_since(last) < QUIET);
        if !busy {
            self.limit.paid_until = None;
            return Duration::ZERO;
        }
        self.limit.delay(now, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn far() -> SocketAddr {
        "192.0.2.1:4433".parse().unwrap()
    }

    #[test]
    fn inside_a_machine_nothing_waits() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        pacer.stepped(start);
        for near in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!((0..100).all(|_| pacer.delay(near.parse().unwrap(), start, MIB).is_zero()), "{near}");
        }
        pacer.delay(far(), start, MIB);
        assert!(!pacer.delay(far(), start, MIB).is_zero());
    }

    #[test]
    fn nothing_waits_while_no_step_runs() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        assert!((0..100).all(|_| pacer.delay(far(), start, MIB).is_zero()));
        pacer.stepped(start);
        // What was sent before the step is forgotten: the first piece is the burst.
        assert_eq!(pacer.delay(far(), start, MIB), Duration::ZERO);
        assert_eq!(pacer.delay(far(), start, MIB), Duration::from_millis(125));
        assert_eq!(pacer.delay(far(), start + QUIET, MIB), Duration::ZERO);
    }

    #[test]
    fn while_steps_run_the_rate_is_kept_whoever_asks() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(4) {
            pacer.stepped(now);
            now += pacer.delay(far(), now, MIB);
            sent += MIB;
        }
        let most = 4 * BUSY_BYTES_PER_SECOND + 2 * BURST_BYTES;
        assert!((most - 3 * MIB..=most).contains(&sent), "{sent}");
        // Two that ask at the same time share the rate.
        pacer.stepped(now);
        let first = pacer.delay(far(), now, MIB);
        assert_eq!(pacer.delay(far(), now, MIB) - first, Duration::from_millis(125));
    }

    #[test]
    fn a_pause_earns_no_more_than_a_burst() {
        let (mut pacer, start) = (Pacer::default(), Instant::now());
        pacer.stepped(start);
        pacer.delay(far(), start, 4 * MIB);
        let later = start + Duration::from_secs(60);
        pacer.stepped(later);
        assert_eq!(pacer.delay(far(), later, MIB), Duration::ZERO);
        assert_eq!(pacer.delay(far(), later, MIB), Duration::from_millis(125));
    }
}
