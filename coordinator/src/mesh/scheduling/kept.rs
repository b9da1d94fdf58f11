//! What ended sequences leave on the stages for others.

use std::collections::BTreeMap;

use qmesh_net::{Prefix, SessionId};

use super::{pages::PageLedger, sequence::Sequence};

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

/// Makes room for `positions` by giving up kept beginnings, the least recently used first. Says which prefix the sequence
/// can still begin with: the one asked for, or none where that had to be given up as well; `None` where there is no room in
/// either case. Also says which sessions were given up: they are to be closed.
pub(super) fn make_room(
    pages: &mut PageLedger,
    kept: &mut BTreeMap<SessionId, Kept>,
    positions: usize,
    prefix: Option<Prefix>,
) -> (Option<Option<Prefix>>, Vec<SessionId>) {
    let shared = prefix.map_or(0, |p| p.positions as usize);
    let mut dropped = Vec::new();
    while !pages.fit(positions, shared) {
        let Some(oldest) = oldest_kept(kept, prefix.map(|p| p.session)) else { break };
        dropped.push(give_up(pages, kept, oldest));
    }
    if pages.fit(positions, shared) {
        return (Some(prefix), dropped);
    }
    // All other beginnings are given up. The prefix itself may go too, if it is only kept and does not run.
    if let Some(source) = prefix.map(|p| p.session).filter(|session| kept.contains_key(session)) {
        dropped.push(give_up(pages, kept, source));
    }
    (pages.fit(positions, 0).then_some(None), dropped)
}

/// Sets `positions` aside for a session in place of the fewer that it has, and gives up kept beginnings for that where it must,
/// the least recently used first. Says whether it could, and which sessions were given up: they are to be closed.
pub(super) fn make_more_room(
    pages: &mut PageLedger,
    kept: &mut BTreeMap<SessionId, Kept>,
    session: SessionId,
    positions: usize,
) -> (bool, Vec<SessionId>) {
    let mut dropped = Vec::new();
    while !pages.grow(session, positions) {
        let Some(oldest) = oldest_kept(kept, None) else { return (false, dropped) };
        dropped.push(give_up(pages, kept, oldest));
    }
    (true, dropped)
}

fn give_up(pages: &mut PageLedger, kept: &mut BTreeMap<SessionId, Kept>, session: SessionId) -> SessionId {
    kept.remove(&session);
    pages.keep(session, 0);
    session
}

/// What has been of use the least recently, besides `but`.
pub(super) fn oldest_kept(kept: &BTreeMap<SessionId, Kept>, but: Option<SessionId>) -> Option<SessionId> {
    let others = kept.iter().filter(|(session, _)| Some(**session) != but);
    others.min_by_key(|(_, kept)| kept.turn).map(|(&session, _)| session)
}
