//! A token goes through a new pipeline before anybody relies on it: a state machine without IO or clock.
//!
//! A probe opens a session on every stage, sends one row and waits for its sample. A model may have a bad row for one
//! token that nobody ever uses, so other tokens are tried before the pipeline is found unfit.

use std::time::{Duration, Instant};

use bytes::Bytes;
use qmesh_net::{
    Frame, FrameKind, OpenSession, PlanEpoch, Sampling, Sections, Segment, SessionId, StepId, StepTimes, Trail, Wants,
};

/// Proves one new pipeline at a time. What belongs to no probe it leaves to others.
#[derive(Debug)]
pub(crate) struct Prober {
    vocab: usize,
    probe: Option<Probe>,
}

/// A probe of one pipeline.
#[derive(Debug)]
struct Probe {
    epoch: PlanEpoch,
    stages: usize,
    vocab: usize,
    tries: u32,
    awaits: Awaited,
    since: Instant,
}

/// What a probe waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Awaited {
    /// So many stages have not answered yet.
    Opened { missing: usize },
    /// The row is under way.
    Sample,
}

/// What the probe wants done, or what came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// To every stage.
    Open(OpenSession),
    /// To every stage of the epoch: this try is over.
    Close(PlanEpoch, SessionId),
    /// To stage 0.
    Frame(Frame),
    /// The pipeline of this epoch works.
    Passed(PlanEpoch),
    /// It does not: no token comes through.
    Failed(PlanEpoch, String),
}

impl Prober {
    /// Probes draw their tokens from a vocabulary of so many ids.
    pub(crate) fn new(vocab: usize) -> Self {
        Self { vocab, probe: None }
    }

    /// A pipeline stands and is to be proved.
    pub(crate) fn start(&mut self, now: Instant, epoch: PlanEpoch, stages: usize) -> Outcome {
        let (probe, open) = Probe::start(now, epoch, stages, self.vocab);
        self.probe = Some(probe);
        open
    }

    /// A stage of this epoch has made room; `None` where that was for no probe.
    pub(crate) fn opened(&mut self, epoch: PlanEpoch, session: SessionId) -> Option<Vec<Outcome>> {
        let probe = self.of(epoch).filter(|_| Probe::owns(session))?;
        Some(probe.opened(session).into_iter().collect())
    }

    /// A stage of this epoch has failed a session; `None` where that was no probe's.
    pub(crate) fn failed(&mut self, epoch: PlanEpoch, session: SessionId, why: &str) -> Option<Vec<Outcome>> {
        let probe = self.of(epoch).filter(|_| Probe::owns(session))?;
        let outcomes = probe.failed(session, why);
        Some(self.ended_by(outcomes))
    }

    /// A step of this epoch came back; `None` where that was no probe's.
    pub(crate) fn sampled(&mut self, epoch: PlanEpoch, step: StepId) -> Option<Vec<Outcome>> {
        let outcomes = self.of(epoch)?.sampled(step);
        Some(self.ended_by(outcomes))
    }

    /// The pipeline of this epoch is gone.
    pub(crate) fn forget(&mut self, epoch: PlanEpoch) {
        self.probe.take_if(|probe| probe.epoch == epoch);
    }

    /// The pipeline whose probe has taken too long.
    pub(crate) fn overdue(&self, now: Instant) -> Option<PlanEpoch> {
        self.probe.as_ref().filter(|probe| probe.is_overdue(now)).map(|probe| probe.epoch)
    }

    fn of(&mut self, epoch: PlanEpoch) -> Option<&mut Probe> {
        self.probe.as_mut().filter(|probe| probe.epoch == epoch)
    }

    fn ended_by(&mut self, outcomes: Vec<Outcome>) -> Vec<Outcome> {
        if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Passed(_) | Outcome::Failed(..))) {
            self.probe = None;
        }
        outcomes
    }
}

impl Probe {
    fn start(now: Instant, epoch: PlanEpoch, stages: usize, vocab: usize) -> (Self, Outcome) {
        let mut probe = Self { epoch, stages, vocab, tries: 0, awaits: Awaited::Sample, since: now };
        let open = probe.open();
        (probe, open)
    }

    /// Whether a session is one of a probe's.
    fn owns(session: SessionId) -> bool {
        session.0 > u64::MAX - u64::from(TRIES_MOST) - 1
    }

    /// A stage has made room.
    fn opened(&mut self, session: SessionId) -> Option<Outcome> {
        let Awaited::Opened { missing } = self.awaits else { return None };
        if session != self.session() {
            return None;
        }
        self.awaits = if missing > 1 { Awaited::Opened { missing: missing - 1 } } else { Awaited::Sample };
        (self.awaits == Awaited::Sample).then(|| Outcome::Frame(self.frame()))
    }

    /// The row came out of the last stage.
    fn sampled(&mut self, step: StepId) -> Vec<Outcome> {
        if self.awaits == Awaited::Sample && step == self.step() {
            vec![Outcome::Close(self.epoch, self.session()), Outcome::Passed(self.epoch)]
        } else {
            Vec::new()
        }
    }

    /// A stage could not compute it: another token may do better.
    fn failed(&mut self, session: SessionId, why: &str) -> Vec<Outcome> {
        if session != self.session() {
            return Vec::new();
        }
        let close = Outcome::Close(self.epoch, session);
        self.tries += 1;
        let next = if self.tries < TRIES_MOST { self.open() } else { Outcome::Failed(self.epoch, why.to_owned()) };
        vec![close, next]
    }

    /// Whether it has taken too long.
    fn is_overdue(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) > PROBE_MOST
    }

    fn open(&mut self) -> Outcome {
        self.awaits = Awaited::Opened { missing: self.stages };
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
        assert!(matches!(probe.sampled(frame.step)[..], [Outcome::Close(..), Outcome::Passed(PlanEpoch(4))]));
    }

    #[test]
    fn the_prober_answers_for_its_own_pipeline_and_sessions_alone() {
        let (now, here, there) = (Instant::now(), PlanEpoch(2), PlanEpoch(1));
        let mut prober = Prober::new(1000);
        assert!(prober.sampled(here, StepId(0)).is_none(), "nothing is probed yet");
        let Outcome::Open(open) = prober.start(now, here, 1) else { panic!("a session opens first") };
        assert!(prober.opened(there, open.session).is_none() && prober.opened(here, SessionId(1)).is_none());
        assert!(prober.failed(here, SessionId(1), "full").is_none());
        assert_eq!((prober.overdue(now), prober.overdue(now + PROBE_MOST * 2)), (None, Some(here)));
        let sent = prober.opened(here, open.session);
        let Some([Outcome::Frame(frame)]) = sent.as_deref() else { panic!("the only stage is open: {sent:?}") };
        assert!(prober.sampled(here, StepId(7)).is_some_and(|outcomes| outcomes.is_empty()));
        assert_eq!(prober.sampled(here, frame.step).map(|outcomes| outcomes.len()), Some(2));
        assert!(prober.sampled(here, frame.step).is_none() && prober.overdue(now + PROBE_MOST * 2).is_none());
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
        assert!(matches!(last, Outcome::Failed(_, why) if why == "a NaN"));
        assert!(!Probe::owns(SessionId(1)) && !probe.is_overdue(now) && probe.is_overdue(now + PROBE_MOST * 2));
    }
}
