//! Which stages have answered that a session may open: each answers once, and in time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use qmesh_net::{PlanEpoch, SessionId};

/// Sessions that some stage has not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    asked: BTreeMap<(PlanEpoch, SessionId), Opening>,
}

#[derive(Debug)]
struct Opening {
    /// Stages without an answer.
    silent: BTreeSet<usize>,
    since: Instant,
}

impl Openings {
    /// Every stage of the epoch was asked.
    pub(crate) fn asked(&mut self, now: Instant, epoch: PlanEpoch, session: SessionId, stages: usize) {
        self.asked.insert((epoch, session), Opening { silent: (0..stages).collect(), since: now });
    }

    /// A stage has answered; `false` where nobody had asked it, or where it had answered before.
    pub(crate) fn answered(&mut self, epoch: PlanEpoch, session: SessionId, stage: usize) -> bool {
        let Some(opening) = self.asked.get_mut(&(epoch, session)) else { return false };
        let first = opening.silent.remove(&stage);
        if opening.silent.is_empty() {
            self.asked.remove(&(epoch, session));
        }
        first
    }

    /// The pipeline of this epoch is gone.
    pub(crate) fn forget(&mut self, epoch: PlanEpoch) {
        self.asked.retain(|(of, _), _| *of != epoch);
    }

    /// A stage that has not answered for longer than `patience`.
    pub(crate) fn overdue(&self, now: Instant, patience: Duration) -> Option<(PlanEpoch, usize)> {
        let late = |opening: &&Opening| now.saturating_duration_since(opening.since) > patience;
        let found = self.asked.iter().find(|(_, opening)| late(opening));
        found.and_then(|((epoch, _), opening)| Some((*epoch, *opening.silent.first()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_answers_once() {
        let (mut openings, now, epoch, session) = (Openings::default(), Instant::now(), PlanEpoch(1), SessionId(7));
        openings.asked(now, epoch, session, 2);
        assert!(openings.answered(epoch, session, 1) && !openings.answered(epoch, session, 1));
        assert!(!openings.answered(PlanEpoch(2), session, 0) && !openings.answered(epoch, SessionId(8), 0));
        let patience = Duration::from_secs(5);
        assert_eq!(openings.overdue(now, patience), None);
        assert_eq!(openings.overdue(now + patience * 2, patience), Some((epoch, 0)));
        assert!(openings.answered(epoch, session, 0) && !openings.answered(epoch, session, 0));
        assert_eq!(openings.overdue(now + patience * 2, patience), None);
        openings.asked(now, epoch, session, 2);
        openings.forget(epoch);
        assert!(!openings.answered(epoch, session, 0));
    }
}
