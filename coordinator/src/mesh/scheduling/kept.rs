//! What ended sequences leave on the stages for others.

use std::collections::BTreeMap;

use qmesh_net::{PlanEpoch, Prefix, SessionId};

use super::{action::Action, pages::PageLedger, sequence::Sequence};

/// The beginning of a sequence that has ended, for others to begin with.
#[derive(Debug)]
pub(super) struct Kept {
    /// One per position: whole pages.
    pub(super) ids: Vec<u32>,
    /// When it was last of use; the least recent goes first.
    pub(super) turn: u64,
}

impl Kept {
    /// What session `session` has left, for [`longest_prefix`].
    pub(super) fn held(&self, session: SessionId) -> (SessionId, &[u32], usize) {
        (session, &self.ids, self.ids.len())
    }
}

/// Beginnings that are kept at a time.
pub(super) const KEPT_MOST: usize = 256;

/// The longest beginning of `sequence`, in whole pages, among what sessions hold: the ids of each, and how many of them are
/// computed. Of equally long ones the last counts.
pub(super) fn longest_prefix<'a>(
    sequence: &Sequence,
    held: impl Iterator<Item = (SessionId, &'a [u32], usize)>,
) -> Option<Prefix> {
    let shared = held.map(|(session, ids, computed)| (session, sequence.shareable(ids, computed)));
    let (session, shared) = shared.max_by_key(|(_, shared)| *shared)?;
    let positions = u32::try_from(shared).ok().filter(|positions| *positions > 0)?;
    Some(Prefix { session, positions })
}

/// What a kept beginning had to give up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Freed {
    pub(super) session: SessionId,
    /// What it has left; with 0 it is no more.
    pub(super) positions: usize,
}

impl Freed {
    /// What the stages are to do.
    pub(super) fn action(self, epoch: PlanEpoch) -> Action {
        match self.positions {
            0 => Action::Close(epoch, self.session),
            positions => Action::Keep(epoch, self.session, positions),
        }
    }
}

/// Makes room for `positions` by giving up kept beginnings, the least recently used first. Says which prefix the sequence
/// can still begin with: the one asked for, or none where that had to be given up as well; `None` where there is no room in
/// either case. Also says what was given up.
pub(super) fn make_room(
    pages: &mut PageLedger,
    kept: &mut BTreeMap<SessionId, Kept>,
    positions: usize,
    prefix: Option<Prefix>,
) -> (Option<Option<Prefix>>, Vec<Freed>) {
    let shared = prefix.map_or(0, |p| p.positions as usize);
    let mut freed = Vec::new();
    while !pages.fit(positions, shared) {
        let Some(oldest) = oldest_kept(kept, prefix.map(|p| p.session)) else { break };
        freed.push(give_up(pages, kept, oldest));
    }
    if pages.fit(positions, shared) {
        return (Some(prefix), freed);
    }
    // All other beginnings are given up. The prefix may lose what is not shared of it, and go altogether, if it is only kept and
    // does not run.
    if let Some((session, source)) = prefix.and_then(|p| Some((p.session, kept.get_mut(&p.session)?))) {
        source.ids.truncate(shared);
        pages.keep(session, shared);
        if pages.fit(positions, shared) {
            freed.push(Freed { session, positions: shared });
            return (Some(prefix), freed);
        }
        freed.push(give_up(pages, kept, session));
    }
    (pages.fit(positions, 0).then_some(None), freed)
}

/// Sets `positions` aside for a session in place of the fewer that it has, and gives up kept beginnings for that where it must,
/// the least recently used first. Says whether it could, and what was given up.
pub(super) fn make_more_room(
    pages: &mut PageLedger,
    kept: &mut BTreeMap<SessionId, Kept>,
    session: SessionId,
    positions: usize,
) -> (bool, Vec<Freed>) {
    let mut freed = Vec::new();
    while !pages.grow(session, positions) {
        let Some(oldest) = oldest_kept(kept, None) else { return (false, freed) };
        freed.push(give_up(pages, kept, oldest));
    }
    (true, freed)
}

fn give_up(pages: &mut PageLedger, kept: &mut BTreeMap<SessionId, Kept>, session: SessionId) -> Freed {
    kept.remove(&session);
    pages.keep(session, 0);
    Freed { session, positions: 0 }
}

/// What has been of use the least recently, besides `but`.
pub(super) fn oldest_kept(kept: &BTreeMap<SessionId, Kept>, but: Option<SessionId>) -> Option<SessionId> {
    let others = kept.iter().filter(|(session, _)| Some(**session) != but);
    others.min_by_key(|(_, kept)| kept.turn).map(|(&session, _)| session)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Session 1 has left three pages, and session 2 one; there are four in all.
    fn books() -> (PageLedger, BTreeMap<SessionId, Kept>) {
        let mut pages = PageLedger::new(256, usize::MAX);
        let mut kept = BTreeMap::new();
        for (session, positions) in [(SessionId(1), 192), (SessionId(2), 64)] {
            pages.open(session, positions, None);
            kept.insert(session, Kept { ids: vec![session.0 as u32; positions], turn: session.0 });
        }
        (pages, kept)
    }

    fn freed(session: u64, positions: usize) -> Freed {
        Freed { session: SessionId(session), positions }
    }

    #[test]
    fn a_prefix_gives_up_what_is_not_shared_before_it_goes() {
        let prefix = |positions| Some(Prefix { session: SessionId(1), positions });
        let (mut pages, mut kept) = books();
        let room = make_room(&mut pages, &mut kept, 192, prefix(128));
        assert_eq!(room, (Some(prefix(128)), vec![freed(2, 0)]));
        // Of 256 positions two pages are shared, and the third one of the prefix is in the way.
        let (mut pages, mut kept) = books();
        let room = make_room(&mut pages, &mut kept, 256, prefix(128));
        assert_eq!(room, (Some(prefix(128)), vec![freed(2, 0), freed(1, 128)]));
        assert_eq!((pages.used_positions(), kept[&SessionId(1)].ids.len()), (128, 128));
        // Where it is in the way itself, and not its pages, it goes.
        let (mut pages, mut kept) = (PageLedger::new(256, 1), books().1);
        kept.remove(&SessionId(2));
        pages.open(SessionId(1), 192, None);
        assert_eq!(make_room(&mut pages, &mut kept, 192, prefix(128)), (Some(None), vec![freed(1, 0)]));
        assert!(kept.is_empty() && pages.used_positions() == 0);
    }

    #[test]
    fn what_does_not_fit_at_all_costs_everything_that_is_kept() {
        let (mut pages, mut kept) = books();
        assert_eq!(make_room(&mut pages, &mut kept, 257, None), (None, vec![freed(1, 0), freed(2, 0)]));
        assert_eq!(
            [freed(1, 0), freed(1, 64)].map(|freed| format!("{:?}", freed.action(PlanEpoch(3)))),
            [
                format!("{:?}", Action::Close(PlanEpoch(3), SessionId(1))),
                format!("{:?}", Action::Keep(PlanEpoch(3), SessionId(1), 64)),
            ]
        );
    }
}
