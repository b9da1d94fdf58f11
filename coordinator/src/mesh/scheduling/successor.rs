//! The next pipeline while sequences follow to it: what is already computed there, and its books.

use std::{collections::BTreeMap, time::Instant};

use qmesh_net::{Prefix, SessionId, StepId, Trails};

use super::{
    action::Action,
    kept::{KEPT_MOST, Kept, longest_prefix},
    pace::Pace,
    pages::{PAGE_POSITIONS, PageLedger},
    phase::Phase,
    sequence::Sequence,
    step::{Pipeline, StepUnderWay},
};

/// The pipeline that sequences follow to.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) pipeline: Pipeline,
    pub(super) steps: BTreeMap<StepId, StepUnderWay>,
    pub(super) pace: Pace,
    pub(super) returned: Instant,
    pub(super) next_step: u32,
    pub(super) pages: PageLedger,
    pub(super) followers: BTreeMap<SessionId, Follower>,
    /// Beginnings that followers of ended sequences have left, as the old pipeline keeps them.
    pub(super) kept: BTreeMap<SessionId, Kept>,
    pub(super) since: Instant,
    /// The old pipeline gets no more steps: its last ones are waited for.
    pub(super) draining: bool,
}

/// A sequence's second self, which has computed a beginning of its ids.
#[derive(Debug)]
pub(super) struct Follower {
    pub(super) phase: Phase,
    pub(super) sent: usize,
    pub(super) computed: usize,
    pub(super) in_flight: usize,
    /// Of the ids sent.
    pub(super) trails: Trails,
    /// A stage would not have it: it starts over when all others are there.
    pub(super) failed: bool,
}

impl Successor {
    /// The longest beginning of `sequence`, in whole pages, that is there already.
    pub(super) fn longest_prefix(
        &self,
        sequence: &Sequence,
        sequences: &BTreeMap<SessionId, Sequence>,
    ) -> Option<Prefix> {
        let running = self.followers.iter().filter(|(_, f)| f.phase == Phase::Running && !f.failed);
        let running =
            running.filter_map(|(&session, f)| Some((session, &sequences.get(&session)?.ids[..], f.computed)));
        longest_prefix(sequence, running.chain(self.kept.iter().map(|(&session, kept)| kept.held(session))))
    }

    /// Ends a follower; it leaves its beginning, as far as it got, where the old pipeline keeps that of its sequence.
    pub(super) fn end(&mut self, session: SessionId, kept: Option<&Kept>) -> Option<Action> {
        let computed =
            self.followers.get(&session).filter(|f| f.phase == Phase::Running && !f.failed).map_or(0, |f| f.computed);
        let positions = kept.map_or(0, |kept| computed.min(kept.ids.len())) / PAGE_POSITIONS * PAGE_POSITIONS;
        let Some(kept) = kept.filter(|_| positions > 0 && self.kept.len() < KEPT_MOST) else {
            return self.leave(session);
        };
        self.followers.remove(&session);
        self.pages.keep(session, positions);
        self.kept.insert(session, Kept { ids: kept.ids[..positions].to_vec(), turn: kept.turn });
        Some(Action::Keep(self.pipeline.epoch, session, positions))
    }

    /// Forgets a follower; who has failed was closed then.
    pub(super) fn leave(&mut self, session: SessionId) -> Option<Action> {
        let follower = self.followers.remove(&session).filter(|f| !f.failed)?;
        debug_assert!(follower.sent >= follower.computed, "what was computed was sent");
        self.pages.keep(session, 0);
        Some(Action::Close(self.pipeline.epoch, session))
    }
}

impl Follower {
    /// So near that what is left takes no longer than a step or two.
    pub(super) fn is_near(&self, sequence: &Sequence) -> bool {
        self.phase == Phase::Running && sequence.ids.len() - self.computed.min(sequence.ids.len()) <= NEAR
    }
}

/// Positions that a follower may lack when its sequence moves.
const NEAR: usize = 48;
