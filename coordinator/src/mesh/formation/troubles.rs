//! What went wrong with whom. Workers that come and go, fail or cannot reach each other are left out of plans for a
//! while, and the longer the more often it happened.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use qmesh_net::PeerId;

use super::worker::WorkerId;

/// Whose fault it was, as far as one can tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Blame {
    /// Nobody's, or everybody's.
    Nobody,
    /// This worker's, which may do better next time.
    Worker(WorkerId),
    /// This worker could not load its layers, and will not unless something changes there.
    Load(WorkerId),
    /// The first of them cannot reach the second.
    Pair(WorkerId, WorkerId),
}

/// How firmly somebody is left out.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Severity {
    /// Only while others can do it.
    Unsteady,
    /// In any case.
    Unfit,
}

/// One trouble, and until when it counts.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) why: String,
    pub(super) severity: Severity,
    pub(super) until: Instant,
    times: u32,
    last: Instant,
}

/// Troubles by key, so that a worker that comes back is remembered.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    workers: BTreeMap<PeerId, Trouble>,
    links: BTreeMap<(PeerId, PeerId), Trouble>,
}

impl Troubles {
    /// The worker failed, or left so soon after it came that it cannot be relied on.
    pub(super) fn unsteady(&mut self, now: Instant, peer: PeerId, why: String) {
        enter(&mut self.workers, now, peer, why, Severity::Unsteady, UNSTEADY);
    }

    /// The worker could not load what it was given.
    pub(super) fn unfit(&mut self, now: Instant, peer: PeerId, why: String) {
        enter(&mut self.workers, now, peer, why, Severity::Unfit, UNFIT);
    }

    /// `from` could not reach `to`.
    pub(super) fn unreachable(&mut self, now: Instant, from: PeerId, to: PeerId, why: String) {
        enter(&mut self.links, now, (from, to), why, Severity::Unfit, UNREACHABLE);
    }

    /// A peer has gone: links to it and from it that broke just before broke for that, and not because the way is bad.
    pub(super) fn gone(&mut self, now: Instant, peer: PeerId) {
        self.links.retain(|(from, to), t| (*from != peer && *to != peer) || now - t.last > DEPARTURE);
    }

    /// What speaks against a worker.
    pub(super) fn of(&self, now: Instant, peer: PeerId) -> Option<&Trouble> {
        self.workers.get(&peer).filter(|t| t.until > now)
    }

    /// What speaks against `from` handing frames to `to`.
    pub(super) fn between(&self, now: Instant, from: PeerId, to: PeerId) -> Option<&Trouble> {
        self.links.get(&(from, to)).filter(|t| t.until > now)
    }

    /// When the next trouble is over: then a new plan may do better.
    pub(super) fn next_end(&self, now: Instant) -> Option<Instant> {
        self.workers.values().chain(self.links.values()).map(|t| t.until).filter(|&until| until > now).min()
    }
}

/// For how long trouble of one kind counts: the first one, and twice as long for each further one within [`MEMORY`].
struct BackOff {
    /// So many troubles count for nothing.
    free: u32,
    first: Duration,
    most: Duration,
}

/// A worker may get lost once without consequences.
const UNSTEADY: BackOff = BackOff { free: 1, first: Duration::from_secs(15), most: Duration::from_secs(600) };
/// For the first time longer than a stage that loads may be silent.
const UNFIT: BackOff = BackOff { free: 0, first: Duration::from_secs(75), most: Duration::from_secs(900) };
const UNREACHABLE: BackOff = BackOff { free: 0, first: Duration::from_secs(60), most: Duration::from_secs(900) };
/// What lies further back does not count.
const MEMORY: Duration = Duration::from_secs(1800);
/// A neighbour may notice so much earlier than the coordinator that a worker has gone.
const DEPARTURE: Duration = Duration::from_secs(10);
/// Peers and links that are remembered; those whose trouble is over longest are forgotten first.
const REMEMBERED: usize = 1024;

fn enter<K: Copy + Ord>(
    book: &mut BTreeMap<K, Trouble>,
    now: Instant,
    key: K,
    why: String,
    severity: Severity,
    back_off: BackOff,
) {
    let before = book.get(&key).filter(|t| now - t.last < MEMORY).map_or(0, |t| t.times);
    let doublings = before.saturating_sub(back_off.free).min(16);
    let wait = if before < back_off.free {
        Duration::ZERO
    } else {
        back_off.first.saturating_mul(1 << doublings).min(back_off.most)
    };
    book.insert(key, Trouble { why, severity, until: now + wait, times: before + 1, last: now });
    if book.len() > REMEMBERED
        && let Some(oldest) = book.iter().min_by_key(|(_, t)| t.until).map(|(&key, _)| key)
    {
        book.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId([1; 32]);
    const B: PeerId = PeerId([2; 32]);

    #[test]
    fn the_first_loss_is_free_and_each_further_one_costs_twice_the_last() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let mut waits = vec![];
        for loss in 0..8 {
            let now = start + Duration::from_secs(loss * 60);
            troubles.unsteady(now, A, "lost".to_owned());
            waits.push(troubles.of(now, A).map_or(0, |t| (t.until - now).as_secs()));
        }
        assert_eq!(waits, [0, 15, 30, 60, 120, 240, 480, 600]);
        let later = start + MEMORY + Duration::from_secs(3600);
        troubles.unsteady(later, A, "lost".to_owned());
        assert!(troubles.of(later, A).is_none(), "long ago counts no more");
    }

    #[test]
    fn a_link_is_bad_one_way_and_not_at_all_where_its_end_had_gone() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        troubles.unreachable(now, A, B, "no route".to_owned());
        assert!(troubles.between(now, A, B).is_some() && troubles.between(now, B, A).is_none());
        assert_eq!(troubles.next_end(now), Some(now + UNREACHABLE.first));
        troubles.gone(now + Duration::from_secs(3), B);
        assert!(troubles.between(now, A, B).is_none());
    }
}
