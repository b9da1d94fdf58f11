//! Admission: when a waiting sequence gets its room on the stages, which computed beginning it starts from, and what an
//! ended one leaves behind for others.

use qmesh_net::{OpenSession, Prefix, SessionId};

use super::Scheduler;
use crate::{
    generate::ClientId,
    mesh::{
        config::PrefixReuse,
        scheduling::{
            action::Action,
            kept::{KEPT_MOST, Kept, longest_prefix, make_room, oldest_kept},
            pages::PAGE_POSITIONS,
            phase::Phase,
            sequence::Sequence,
            step::Pipeline,
        },
    },
};

impl Scheduler {
    /// Opens waiting sequences on the stages, for as long as there is room for the next one beside what those that run will
    /// need soon.
    pub(super) fn admit(&mut self, pipeline: Pipeline) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(place) = self.next_in_queue() {
            let session = self.queue[place];
            let Some(positions) = self.sequences.get(&session).map(Sequence::room) else { break };
            let (prefix, spare) = (self.longest_prefix(session), self.room_to_spare());
            let (prefix, freed) = make_room(&mut self.pages, &mut self.kept, positions + spare, prefix);
            actions.extend(freed.into_iter().map(|freed| freed.action(pipeline.epoch)));
            let Some(prefix) = prefix else { break };
            self.queue.remove(place);
            self.pages.open(session, positions, prefix.map(|p| (p.session, p.positions as usize)));
            self.turn += 1;
            if let Some(kept) = prefix.and_then(|p| self.kept.get_mut(&p.session)) {
                kept.turn = self.turn;
            }
            let Some(sequence) = self.sequences.get_mut(&session) else { break };
            sequence.opening(pipeline.stages, prefix.map_or(0, |p| p.positions as usize));
            let max_positions = u32::try_from(sequence.max_positions).unwrap_or(u32::MAX);
            let sampling = sequence.request.sampling.clone();
            actions.push(Action::Open(OpenSession { epoch: pipeline.epoch, session, max_positions, sampling, prefix }));
        }
        actions
    }

    /// Ends a sequence on the stages: the pages of its beginning are kept where they can be of use to others, and the
    /// rest is freed.
    pub(super) fn leave(&mut self, session: SessionId, sequence: Sequence) -> Vec<Action> {
        self.forget_if_gone(sequence.request.client);
        let mut ids = sequence.ids;
        let kept = match self.limits.prefix_reuse {
            PrefixReuse::On if !sequence.spoiled => sequence.computed / PAGE_POSITIONS * PAGE_POSITIONS,
            PrefixReuse::On | PrefixReuse::Off => 0,
        };
        ids.truncate(kept);
        // Where another kept beginning starts with this one, that one does for both. The other way round, kept
        // beginnings with which this one starts are needed no more.
        if kept == 0 || self.kept.values().any(|other| other.ids.starts_with(&ids)) {
            self.pages.keep(session, 0);
            return self.close(session);
        }
        let shorter: Vec<_> = self.kept.iter().filter(|(_, k)| ids.starts_with(&k.ids)).map(|(&s, _)| s).collect();
        self.pages.keep(session, kept);
        self.turn += 1;
        self.kept.insert(session, Kept { ids, turn: self.turn });
        let mut actions: Vec<_> =
            self.pipeline.iter().map(|pipeline| Action::Keep(pipeline.epoch, session, kept)).collect();
        actions.extend(shorter.into_iter().flat_map(|session| self.drop_kept(session)));
        if self.kept.len() > KEPT_MOST {
            let oldest = oldest_kept(&self.kept, None);
            actions.extend(oldest.into_iter().flat_map(|session| self.drop_kept(session)));
        }
        actions
    }

    /// A client without sequences here starts level with the one that was served least: what it was served before does
    /// not count against it, and having been away does not put it ahead of the others.
    pub(super) fn welcome(&mut self, client: ClientId) {
        let least = self.served.values().min().copied().unwrap_or_default();
        self.served.entry(client).or_insert(least);
    }

    pub(super) fn forget_if_gone(&mut self, client: ClientId) {
        if self.sequences.values().all(|s| s.request.client != client) {
            self.served.remove(&client);
        }
    }

    /// The place in the queue of the sequence that is admitted next: one whose answer has begun before all others, then of the
    /// client that was served least the one that has waited longest.
    fn next_in_queue(&self) -> Option<usize> {
        let order = |i: &usize| {
            let sequence = self.sequences.get(&self.queue[*i])?;
            Some((!sequence.is_answering(), self.served.get(&sequence.request.client).copied().unwrap_or_default()))
        };
        (0..self.queue.len()).min_by_key(order)
    }

    /// The session with which this one has the longest beginning in common, and how much of it, in whole pages: one
    /// that is kept, or one that runs.
    fn longest_prefix(&self, session: SessionId) -> Option<Prefix> {
        let sequence = self.sequences.get(&session)?;
        if self.limits.prefix_reuse == PrefixReuse::Off {
            return None;
        }
        let kept = self.kept.iter().map(|(&session, kept)| kept.held(session));
        let running = self.sequences.iter().filter(|(_, s)| s.phase == Phase::Running && !s.spoiled);
        longest_prefix(sequence, kept.chain(running.map(|(&session, s)| (session, &s.ids[..], s.computed))))
    }

    fn drop_kept(&mut self, session: SessionId) -> Vec<Action> {
        self.kept.remove(&session);
        self.pages.keep(session, 0);
        self.close(session)
    }

    pub(super) fn close(&self, session: SessionId) -> Vec<Action> {
        self.pipeline.iter().map(|pipeline| Action::Close(pipeline.epoch, session)).collect()
    }
}
