//! The books on KV pages. They do the same sums as every stage, so that no stage is ever asked for room that it lacks.
//!
//! Sessions that begin alike share pages; a page counts once, for as long as somebody holds it. Where layers have a state of
//! each session, there are no more sessions than there is room for their states.

use std::{collections::BTreeMap, sync::Arc};

pub(crate) use qmesh_models::footprint::PAGE_POSITIONS;
use qmesh_net::SessionId;

/// Pages of all open sessions.
#[derive(Debug)]
pub(crate) struct PageLedger {
    budget: usize,
    used: usize,
    /// The most sessions.
    sessions_most: usize,
    /// The pages of each session, in order; equal ones are shared.
    sessions: BTreeMap<SessionId, Vec<Arc<()>>>,
}

impl PageLedger {
    /// The books of stages with pages for so many positions, and room for so many sessions.
    pub(crate) fn new(positions: usize, sessions_most: usize) -> Self {
        Self { budget: positions.div_ceil(PAGE_POSITIONS), used: 0, sessions_most, sessions: BTreeMap::new() }
    }

    /// Positions set aside, in whole pages.
    pub(crate) fn used_positions(&self) -> usize {
        self.used * PAGE_POSITIONS
    }

    /// Whether there is room for a session of `positions`, of which the first `shared` lie in pages that another session has
    /// already.
    pub(crate) fn fit(&self, positions: usize, shared: usize) -> bool {
        let pages = self.used + positions.div_ceil(PAGE_POSITIONS) - shared / PAGE_POSITIONS;
        pages <= self.budget && self.sessions.len() < self.sessions_most
    }

    /// Sets `positions` aside for a session. It may begin with the first positions of another one, whole pages, which
    /// are shared then.
    pub(crate) fn open(&mut self, session: SessionId, positions: usize, shared: Option<(SessionId, usize)>) {
        let source = shared.and_then(|(source, shared)| self.sessions.get(&source)?.get(..shared / PAGE_POSITIONS));
        let mut pages = source.unwrap_or_default().to_vec();
        let own = positions.div_ceil(PAGE_POSITIONS) - pages.len();
        pages.extend((0..own).map(|_| Arc::new(())));
        self.used += own;
        self.sessions.insert(session, pages);
    }

    /// Leaves a session the pages of its first `positions` only; with 0 it leaves the books.
    pub(crate) fn keep(&mut self, session: SessionId, positions: usize) {
        let Some(pages) = self.sessions.get_mut(&session) else { return };
        let kept = positions.div_ceil(PAGE_POSITIONS).min(pages.len());
        let gone = pages.drain(kept..).filter(|page| Arc::strong_count(page) == 1).count();
        self.used -= gone;
        if positions == 0 {
            self.sessions.remove(&session);
        }
    }

    /// All sessions are gone.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.sessions.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_pages_count_once_and_last_as_long_as_a_holder() {
        let mut pages = PageLedger::new(640, usize::MAX);
        let [first, second, third] = [1, 2, 3].map(SessionId);
        pages.open(first, 300, None);
        assert_eq!(pages.used_positions(), 320);
        pages.keep(first, 192);
        assert_eq!(pages.used_positions(), 192);
        assert!(pages.fit(576, 128) && !pages.fit(577, 128));
        pages.open(second, 320, Some((first, 128)));
        assert_eq!(pages.used_positions(), 384);
        pages.open(third, 320, Some((second, 192)));
        assert_eq!(pages.used_positions(), 512);
        pages.keep(first, 0);
        assert_eq!(pages.used_positions(), 448);
        pages.keep(second, 0);
        assert_eq!(pages.used_positions(), 320);
        pages.keep(third, 0);
        assert_eq!(pages.used_positions(), 0);
    }

    #[test]
    fn states_bound_how_many_sessions_there_are() {
        let mut pages = PageLedger::new(640, 2);
        pages.open(SessionId(1), 64, None);
        assert!(pages.fit(64, 0));
        pages.open(SessionId(2), 64, None);
        assert!(!pages.fit(64, 0));
        pages.keep(SessionId(1), 0);
        assert!(pages.fit(64, 0));
    }
}
