//! Room as sequences grow: more pages for those that need some, and who gives pages up where there are none.
//!
//! Whoever came first goes first. Kept beginnings go before anybody's rows; then the youngest sequence on the stages gives way:
//! its session is closed, and it waits and is computed again. So the oldest one always gets on, and a session may be promised
//! its whole length although not all of them have room for it at once.

use qmesh_net::SessionId;

use super::Scheduler;
use crate::mesh::scheduling::{
    action::Action, kept::make_more_room, pages::PAGE_POSITIONS, phase::Phase, sequence::Sequence,
};

impl Scheduler {
    /// Sets pages aside for the sequences that will soon need some.
    pub(super) fn provide_room(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let needs = |(session, s): &(&SessionId, &Sequence)| {
            s.phase == Phase::Running && self.pages.held(**session) < s.room_least()
        };
        let needy: Vec<SessionId> = self.sequences.iter().filter(needs).map(|(&session, _)| session).collect();
        for session in needy {
            actions.extend(self.grow(session));
        }
        actions
    }

    /// Positions, in whole pages, that are left free beside a sequence that is let in: a page for each one that grows.
    pub(super) fn room_to_spare(&self) -> usize {
        let growing = self.sequences.iter().filter(|(session, s)| s.may_outgrow(self.pages.held(**session)));
        growing.count() * PAGE_POSITIONS
    }

    /// A sequence without steps under way gives its room up, and is the next to be let in.
    pub(super) fn queue_again(&mut self, session: SessionId) -> Vec<Action> {
        if let Some(sequence) = self.sequences.get_mut(&session) {
            sequence.give_way();
            self.queue.push_front(session);
        }
        self.pages.keep(session, 0);
        self.close(session)
    }

    /// Sets room aside for a sequence that runs out of it, by whoever has to give some up.
    fn grow(&mut self, session: SessionId) -> Vec<Action> {
        let mut actions = Vec::new();
        loop {
            let held = self.pages.held(session);
            let Some(sequence) = self.sequences.get(&session).filter(|s| s.phase == Phase::Running) else { break };
            let (ids, least, wanted) = (sequence.ids.len(), sequence.room_least(), sequence.room());
            if held >= least {
                break;
            }
            let (grown, freed) = make_more_room(&mut self.pages, &mut self.kept, session, wanted);
            let epoch = self.pipeline.as_ref().map(|pipeline| pipeline.epoch);
            actions.extend(freed.into_iter().filter_map(|freed| Some(freed.action(epoch?))));
            if grown {
                break;
            }
            // It can do without drafts, or wait for those that give way already.
            let others_leave = self.sequences.values().any(|s| s.phase == Phase::Yielding);
            if held >= ids || self.pages.grow(session, ids) || others_leave {
                break;
            }
            let youngest = self.sequences.iter().rev().find(|(_, s)| s.phase == Phase::Running);
            let youngest = youngest.map_or(session, |(&youngest, _)| youngest);
            actions.extend(self.give_way(youngest));
        }
        actions
    }

    /// Lets a sequence that runs give its room up, at once or when its steps are back.
    fn give_way(&mut self, session: SessionId) -> Vec<Action> {
        self.totals.preemptions += 1;
        if let Some(sequence) = self.sequences.get_mut(&session) {
            sequence.phase = Phase::Yielding;
        }
        self.close_if_over(session)
    }
}
