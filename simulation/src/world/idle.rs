//! When nothing goes wrong any more, every request ends, and nothing is left over on either side.

use std::time::Duration;

use qmesh_coordinator::mesh::status::{MeshState, MeshStatus};

use super::World;

/// Since when the mesh has been idle under one plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    since: Duration,
    epoch: u32,
}

impl World {
    /// Ends the world when it has been quiet for a while, or has not become quiet for too long.
    pub(super) fn look_for_quiet(&mut self) {
        if !self.calm {
            return;
        }
        let waits = self.asked.iter().find(|(_, asked)| !asked.is_over && self.now - asked.at > BOUND);
        if let Some((session, asked)) = waits {
            let (session, at) = (*session, asked.at);
            return self.find(format!("session {session} has waited for its end since {:.1} s", at.as_secs_f64()));
        }
        let all_over = self.to_ask == 0 && self.asked.values().all(|asked| asked.is_over);
        if !all_over || !self.coordinator.is_idle() {
            self.quiet = None;
            return self.check_bound();
        }
        let status = self.coordinator.status(self.instant());
        let epoch = status.epoch;
        if status.state != MeshState::Ready || status.change.is_some() {
            self.quiet = None;
            return self.check_bound();
        }
        let quiet = self.quiet.filter(|quiet| quiet.epoch == epoch);
        let quiet = *self.quiet.insert(quiet.unwrap_or(Quiet { since: self.now, epoch }));
        if self.now - quiet.since > QUIET {
            self.over = true;
            self.check_books(&status);
        }
    }

    fn check_bound(&mut self) {
        let since_calm = self.now.saturating_sub(self.scenario.calm_at);
        if since_calm > BOUND {
            let status = self.coordinator.status(self.instant());
            let (state, text, to_ask) = (status.state, status.text, self.to_ask);
            self.find(format!(
                "nothing has gone wrong for {since_calm:?}, and the mesh does not come to rest: {state:?}, {text}; {} \
                 running, {} waiting, {to_ask} to come",
                status.running, status.waiting
            ));
        }
    }

    /// Both sides have the same books, and nothing in them that nobody needs.
    fn check_books(&mut self, status: &MeshStatus) {
        if status.running + status.waiting > 0 {
            self.find("the mesh says that it is idle, and that sequences run or wait".to_owned());
        }
        if let Some(drafter) = self.drafter.as_ref().filter(|drafter| drafter.knows() > 0) {
            let known = drafter.knows();
            self.find(format!("the mesh is idle, and the model that drafts knows of {known} sessions"));
        }
        let mut sessions = None;
        for number in 0..self.machines.len() {
            let machine = &self.machines[number];
            let stage = status.stages.iter().find(|stage| stage.worker == machine.name);
            let shards = machine.books.shards();
            let held = machine.worker.as_ref().map_or(0, |worker| worker.held());
            if held > 0 || machine.is_computing {
                self.find(format!("m{number} is idle, and holds {held} frames, commands or loads"));
            }
            match (stage, shards.as_slice()) {
                (None, []) => {}
                (None, [..]) => self.find(format!("m{number} has no stage, and holds {shards:?}")),
                (Some(_), [shard]) => {
                    let (used, promised) = (shard.positions_used, status.kv_positions_used);
                    let open = sessions.get_or_insert_with(|| shard.sessions.clone());
                    if *open != shard.sessions || used != promised {
                        let text = format!(
                            "m{number} holds {used} positions for sessions {:?}; the coordinator counts {promised}, and \
                             another stage holds {open:?}",
                            shard.sessions
                        );
                        self.find(text);
                    }
                }
                (Some(_), [..]) => self.find(format!("m{number} has one stage, and holds {shards:?}")),
            }
        }
    }
}

/// The longest that anything may take, all deadlines on its way together.
const BOUND: Duration = Duration::from_secs(1800);
/// How long a mesh must have been idle before its books are compared: longer than messages travel.
const QUIET: Duration = Duration::from_secs(10);
