//! What goes wrong: workers die, stop, return and leave, connections and links are cut, machines run out of memory.

use std::time::Duration;

use qmesh_engine::worker::simulation::WorkerInput;

use super::{World, link::LinkEnd};
use crate::agenda::{AtWorker, Happening};

impl World {
    pub(super) fn mishap_later(&mut self) {
        let at = self.now + self.random.millis(self.scenario.mishap_gap_ms.clone());
        self.agenda.enter(at, Happening::Mishap);
    }

    pub(super) fn mishap(&mut self) {
        if self.calm {
            return;
        }
        self.mishap_later();
        let number = self.random.within(0..self.machines.len() as u64) as usize;
        if !self.machines[number].answers() {
            return;
        }
        self.story.totals.mishaps += 1;
        match self.random.within(0..9) {
            0 | 1 => self.dies(number),
            2 | 3 => self.stops(number),
            4 => {
                if let Some(connection) = self.machines[number].connection {
                    self.story.tell(format!("the connection of m{number} is cut"));
                    self.cut(connection, 5000);
                }
            }
            5 => self.cut_link(),
            6 => self.block(number),
            7 => {
                self.story.tell(format!("m{number} will have no memory for its next shard"));
                self.machines[number].books.fail_next_load();
            }
            _ => self.is_asked_to_leave(number),
        }
    }

    /// Nothing goes wrong from now on: everybody is there.
    pub(super) fn calm(&mut self) {
        self.story.tell("nothing goes wrong from now on".to_owned());
        self.calm = true;
        self.blocked.clear();
        for number in 0..self.machines.len() {
            self.starts(number);
        }
    }

    fn dies(&mut self, number: usize) {
        self.story.tell(format!("m{number} dies"));
        self.end_process(number, 5000);
        self.returns(number, 20_000);
    }

    fn stops(&mut self, number: usize) {
        self.story.tell(format!("m{number} stops: it lives and does nothing"));
        self.machines[number].is_stopped = true;
        let most = if self.random.percent(10) { 400_000 } else { 30_000 };
        self.returns(number, most);
    }

    pub(super) fn returns(&mut self, number: usize, most: u64) {
        let at = self.now + self.random.millis(0..most);
        self.agenda.enter(at, Happening::Starts { machine: number });
    }

    /// The process is gone, and everybody notices within so many milliseconds.
    fn end_process(&mut self, number: usize, most: u64) {
        let process = self.machines[number].process;
        let of_it = |end: LinkEnd| matches!(end, LinkEnd::Worker { machine, process: p, .. } if (machine, p) == (number, process));
        let links = self.links.iter().filter(|(_, link)| of_it(link.from) || of_it(link.to));
        let links: Vec<u64> = links.map(|(&link, _)| link).collect();
        links.into_iter().for_each(|link| self.break_link(link, most));
        let connections = self.connections.iter().filter(|(_, over)| (over.machine, over.process) == (number, process));
        let connections: Vec<u64> = connections.map(|(&connection, _)| connection).collect();
        connections.into_iter().for_each(|connection| self.cut(connection, most));
        self.machines[number].end();
    }

    fn cut_link(&mut self) {
        let between = |end: LinkEnd| matches!(end, LinkEnd::Worker { .. });
        let links = self.links.iter().filter(|(_, l)| !l.is_broken && !l.is_parted && between(l.from) && between(l.to));
        let links: Vec<u64> = links.map(|(&link, _)| link).collect();
        if let Some(link) = self.random.one_of(&links) {
            let epoch = self.links[&link].epoch;
            self.story.tell(format!("link {link} of plan {epoch} is cut"));
            self.break_link(link, 4000);
        }
    }

    /// Two machines cannot reach each other for as long as things go wrong.
    fn block(&mut self, number: usize) {
        let other = self.random.within(0..self.machines.len() as u64) as usize;
        if other == number || !self.blocked.is_empty() {
            return;
        }
        self.story.tell(format!("m{number} and m{other} cannot reach each other any more"));
        self.blocked.insert((number.min(other), number.max(other)));
        let between = |end: LinkEnd, of: usize| matches!(end, LinkEnd::Worker { machine, .. } if machine == of);
        let links = self.links.iter().filter(|(_, link)| {
            (between(link.from, number) && between(link.to, other))
                || (between(link.from, other) && between(link.to, number))
        });
        let links: Vec<u64> = links.map(|(&link, _)| link).collect();
        links.into_iter().for_each(|link| self.break_link(link, 4000));
    }

    fn is_asked_to_leave(&mut self, number: usize) {
        let Some(connection) = self.machines[number].connection.filter(|_| !self.machines[number].is_leaving) else {
            return;
        };
        self.story.tell(format!("m{number} is asked to leave"));
        self.machines[number].is_leaving = true;
        self.tell_worker(number, WorkerInput::Asked);
        // A step that takes too long does not keep it.
        let (process, at) = (self.machines[number].process, self.now + LEAVE_DEADLINE);
        let what = AtWorker::LosesCoordinator { connection };
        self.agenda.enter(at, Happening::AtWorker { machine: number, process, what });
    }
}

/// How long a worker that is asked to leave waits for its steps.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);
