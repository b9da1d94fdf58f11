//! Workers that have lost the coordinator because its own machine got another address: it waits for them a little before it plans
//! with fewer.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use qmesh_net::PeerId;

use super::{Action, Roster};
use crate::mesh::formation::worker::WorkerId;

/// Who is to come back, and until when others wait for them.
#[derive(Debug)]
pub(super) struct Returning {
    peers: BTreeSet<PeerId>,
    until: Instant,
}

impl Roster {
    /// This machine has another address, for which these workers have lost it. That is not held against them.
    pub(crate) fn displaced(&mut self, now: Instant, workers: &[WorkerId]) -> Vec<Action> {
        let mut peers: BTreeSet<PeerId> = self.returning.take().into_iter().flat_map(|before| before.peers).collect();
        let mut actions = Vec::new();
        for worker in workers {
            let Some(gone) = self.workers.remove(worker) else { continue };
            self.speeds.gone(*worker);
            self.troubles.gone(now, gone.joined.peer);
            peers.insert(gone.joined.peer);
            let pipelines = self.serving.iter().chain(&self.next);
            let held: Vec<_> = pipelines.filter(|p| p.stage_of(*worker).is_some()).map(|p| p.epoch).collect();
            actions.extend(held.into_iter().flat_map(|epoch| self.drop_pipeline(now, epoch, MOVED.to_owned())));
        }
        self.returning = Some(Returning { peers, until: now + RETURN });
        actions
    }

    /// One is back. When all are, there is nothing to wait for.
    pub(super) fn is_back(&mut self, now: Instant, peer: PeerId) {
        let Some(returning) = &mut self.returning else { return };
        if returning.peers.remove(&peer) && returning.peers.is_empty() {
            self.returning = None;
            self.plan_at = Some(now);
        }
    }

    /// Whether somebody is still waited for.
    pub(super) fn awaits_returns(&mut self, now: Instant) -> bool {
        self.returning.take_if(|returning| returning.until <= now);
        self.returning.is_some()
    }
}

/// What people hear of it.
pub(crate) const MOVED: &str = "the coordinator's machine has another address, and calls its workers from there";
/// They are called for more than a second, and have to join.
const RETURN: Duration = Duration::from_secs(3);
