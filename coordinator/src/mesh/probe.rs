//! A token goes through a new pipeline before anybody relies on it: a state machine without IO or clock.
//!
//! It opens a session on every stage, sends one row and waits for its sample. A model may have a bad row for one token that
//! nobody ever uses, so other tokens are tried before the pipeline is found unfit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use qmesh_net::{
    Frame, FrameKind, OpenSession, PlanEpoch, Sampling, Sections, Segment, SessionId, StepId, StepTimes, Trail, Wants,
};

/// A probe of one pipeline.
#[derive(Debug)]
pub(crate) struct Probe {
    epoch: PlanEpoch,
    stages: usize,
    vocab: usize,
    tries: u32,
    phase: Phase,
    since: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Opening { missing: usize },
    Sent,
}

/// What the probe wants done, or what came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// To every stage.
    Open(OpenSession),
    /// To every stage: this try is over.
    Close(SessionId),
    /// To stage 0.
    Frame(Frame),
    /// The pipeline works.
    Passed,
    /// It does not: no token comes through.
    Failed(String),
}

impl Probe {
    pub(crate) fn start(now: Instant, epoch: PlanEpoch, stages: usize, vocab: usize) -> (Self, Outcome) {
        let mut probe = Self { epoch, stages, vocab, tries: 0, phase: Phase::Sent, since: now };
        let open = probe.open();
        (probe, open)
    }

    pub(crate) fn epoch(&self) -> PlanEpoch {
        self.epoch
    }

    /// Whether a session is one of a probe's.
    pub(crate) fn owns(session: SessionId) -> bool {
        session.0 > u64::MAX - u64::from(TRIES_MOST) - 1
    }

    /// A stage has made room.
    pub(crate) fn opened(&mut self, session: SessionId) -> Option<Outcome> {
        let Phase::Opening { missing } = self.phase else { return None };
        if session != self.session() {
            return None;
        }
        self.phase = if missing > 1 { Phase::Opening { missing: missing - 1 } } else { Phase::Sent };
        (self.phase == Phase::Sent).then(|| Outcome::Frame(self.frame()))
    }

    /// The row came out of the last stage.
    pub(crate) fn sampled(&mut self, step: StepId) -> Vec<Outcome> {
        if self.phase == Phase::Sent && step == self.step() {
            vec![Outcome::Close(self.session()), Outcome::Passed]
        } else {
            Vec::new()
        }
    }

    /// A stage could not compute it: another token may do better.
    pub(crate) fn failed(&mut self, session: SessionId, why: &str) -> Vec<Outcome> {
        if session != self.session() {
            return Vec::new();
        }
        let close = Outcome::Close(session);
        self.tries += 1;
        let next = if self.tries < TRIES_MOST { self.open() } else { Outcome::Failed(why.to_owned()) };
        vec![close, next]
    }

    /// Whether it has taken too long.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > PROBE_MOST
    }

    fn open(&mut self) -> Outcome {
        self.phase = Phase::Opening { missing: self.stages };
        Outcome::Open(OpenSession {
            epoch: self.epoch,
            session: self.session(),
            max_positions: 1,
            sampling: Sampling::default(),
            prefix: None,
        })
    }

    /// Sequences count from 1 upwards, probes from the end.
    fn session(&self) -> SessionId {
        SessionId(u64::MAX - u64::from(self.tries))
    }

    /// Steps of a stage only rise; the sequences' begin where those of probes end.
    fn step(&self) -> StepId {
        StepId(self.tries)
    }

    /// Far from the beginning of the vocabulary, where tokens are that no text has.
    fn id(&self) -> u32 {
        let id = self.vocab * (self.tries as usize + 1) / (TRIES_MOST as usize + 1);
        u32::try_from(id).unwrap_or(0)
    }

    fn frame(&self) -> Frame {
        let segment = Segment {
            session: self.session(),
            position: 0,
            rows: 1,
            wants: Wants::Last,
            trail: Trail::default().then(self.id()),
        };
        Frame {
            kind: FrameKind::Tokens,
            epoch: self.epoch,
            step: self.step(),
            width: 0,
            times: StepTimes::default(),
            segments: vec![segment],
            ids: vec![self.id()],
            payload: Bytes::new(),
            sections: Sections::default(),
        }
    }
}

/// Tokens that are tried.
pub(crate) const TRIES_MOST: u32 = 3;
/// The first step of a large model reads its weights for the first time.
const PROBE_MOST: Duration = Duration::from_secs(45);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_comes_back_proves_the_pipeline() {
        let (mut probe, open) = Probe::start(Instant::now(), PlanEpoch(4), 2, 1000);
        let Outcome::Open(open) = open else { panic!("{open:?}") };
        assert!((open.epoch, open.max_positions) == (PlanEpoch(4), 1) && Probe::owns(open.session));
        assert!(probe.opened(open.session).is_none() && probe.opened(SessionId(1)).is_none());
        let Some(Outcome::Frame(frame)) = probe.opened(open.session) else { panic!("every stage is open") };
        assert_eq!((frame.ids.as_slice(), frame.segments[0].wants), (&[250][..], Wants::Last));
        assert!(probe.sampled(StepId(7)).is_empty());
        assert!(matches!(probe.sampled(frame.step)[..], [Outcome::Close(_), Outcome::Passed]));
    }

    #[test]
    fn only_when_no_token_comes_through_the_pipeline_has_failed() {
        let now = Instant::now();
        let (mut probe, mut last) = Probe::start(now, PlanEpoch(1), 1, 100);
        let mut ids = vec![];
        for _ in 0..TRIES_MOST {
            let Outcome::Open(open) = last else { panic!("{last:?}") };
            let Some(Outcome::Frame(frame)) = probe.opened(open.session) else { panic!("the only stage is open") };
            ids.extend(frame.ids);
            last = probe.failed(open.session, "a NaN").pop().expect("another try, or the end");
        }
        assert_eq!(ids, [25, 50, 75]);
        assert!(matches!(last, Outcome::Failed(why) if why == "a NaN"));
        assert!(!Probe::owns(SessionId(1)) && !probe.is_overdue(now) && probe.is_overdue(now + PROBE_MOST * 2));
    }
}
