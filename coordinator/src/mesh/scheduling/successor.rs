//! The next pipeline while sequences follow to it: what is already computed there, and its books.

use std::{collections::BTreeMap, time::Instant};

use qmesh_net::{SessionId, StepId, Trails};

use super::{
    action::Action,
    pace::Pace,
    pages::PageLedger,
    sequence::{Phase, Sequence},
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
