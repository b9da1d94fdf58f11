//! What happens at a worker, and what it wants done.

use std::time::Duration;

use qmesh_engine::worker::simulation::{WorkerInput, WorkerOutput};
use qmesh_net::{Downstream, Frame, Upstream};

use super::{
    World,
    coordinator::COORDINATOR,
    link::{Connection, LinkEnd},
    machine::TurnLinks,
};
use crate::{
    Plant,
    agenda::{AtWorker, Happening},
    scenario::{Faulty, Nonsense},
};

impl World {
    /// A machine starts a worker, or goes on with the one that was stopped.
    pub(super) fn starts(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        if machine.is_stopped {
            machine.is_stopped = false;
            let (process, deferred) = (machine.process, std::mem::take(&mut machine.deferred));
            self.story.tell(format!("m{number} goes on"));
            for what in deferred {
                self.at_worker(number, process, what);
            }
        } else if machine.worker.is_none() {
            machine.start(self.now);
            self.story.tell(format!("m{number} starts a worker"));
            let process = self.machines[number].process;
            self.later(number, process, 500, AtWorker::Dials);
            self.later(number, process, 1000, AtWorker::Tick);
        }
    }

    pub(super) fn at_worker(&mut self, number: usize, process: u64, what: AtWorker) {
        let machine = &mut self.machines[number];
        if machine.process != process || machine.worker.is_none() {
            return;
        }
        if machine.is_stopped {
            return machine.deferred.push_back(what);
        }
        self.worker_happening(number, process, what);
        self.keep_busy(number);
    }

    fn worker_happening(&mut self, number: usize, process: u64, what: AtWorker) {
        match what {
            AtWorker::Dials => self.dials(number, process),
            AtWorker::Joined { connection } => {
                if self.connections.get(&connection).is_some_and(|over| over.is_open) {
                    let machine = &mut self.machines[number];
                    (machine.connection, machine.dialled) = (Some(connection), None);
                    self.tell_worker(number, WorkerInput::Joined { coordinator: COORDINATOR });
                }
            }
            AtWorker::Hears { connection, message } => {
                let is_open = self.connections.get(&connection).is_some_and(|over| over.is_open);
                if is_open && self.machines[number].connection == Some(connection) {
                    self.tell_worker(number, WorkerInput::Message(message));
                }
            }
            AtWorker::LosesCoordinator { connection } => self.loses_coordinator(number, connection),
            AtWorker::Tick => {
                self.tell_worker(number, WorkerInput::Tick);
                let at = self.now + Duration::from_secs(1);
                let what = AtWorker::Tick;
                self.agenda.enter(at, Happening::AtWorker { machine: number, process, what });
            }
            AtWorker::Fetching { connection, turn, bytes } => {
                if self.is_fetching(number, connection, turn) {
                    let (bytes_done, bytes_total) = (bytes / 2, bytes);
                    self.tell_worker(number, WorkerInput::Fetching { turn, bytes_done, bytes_total });
                }
            }
            AtWorker::FetchEnds { connection, turn, outcome } => self.fetch_ends(number, connection, turn, outcome),
            AtWorker::LoadEnds { turn, took } => {
                let now = self.instant();
                let worker = self.machines[number].worker.as_mut();
                let outputs = worker.map(|worker| worker.load(now, turn, took)).unwrap_or_default();
                self.worker_outputs(number, outputs);
            }
            AtWorker::Computed => {
                let now = self.instant();
                let machine = &mut self.machines[number];
                (machine.is_computing, machine.idle_since) = (false, self.now);
                let outputs = machine.worker.as_mut().map(|worker| worker.computed(now)).unwrap_or_default();
                self.worker_outputs(number, outputs);
            }
            AtWorker::TriesLink { turn, since } => self.tries_link(number, process, turn, since),
            AtWorker::LinkArrives { link } => {
                if let Some(arrived) = self.links.get(&link).filter(|arrived| !arrived.is_broken) {
                    let (peer, epoch) = (arrived.peer, arrived.epoch);
                    self.tell_worker(number, WorkerInput::LinkArrived { link, peer, epoch });
                }
            }
            AtWorker::FrameArrives { link, frame } => self.frame_arrives(number, link, frame),
            AtWorker::Sent { turn, bytes } => self.tell_worker(number, WorkerInput::Sent { turn, bytes }),
            AtWorker::UpstreamBreaks { link } => {
                if self.links.get(&link).is_some_and(|link| !link.is_parted) {
                    let text = "the stream was reset".to_owned();
                    self.tell_worker(number, WorkerInput::UpstreamBroken { link, text });
                }
            }
            AtWorker::DownstreamBreaks { link, turn } => self.downstream_breaks(number, process, link, turn),
        }
    }

    fn fetch_ends(&mut self, number: usize, connection: u64, turn: u64, outcome: Result<u64, String>) {
        if self.is_fetching(number, connection, turn) {
            self.machines[number].fetching.remove(&turn);
            let input = match outcome {
                Ok(bytes) => WorkerInput::Fetched { turn, bytes },
                Err(text) => WorkerInput::NotFetched { turn, text },
            };
            self.tell_worker(number, input);
        }
    }

    fn is_fetching(&self, number: usize, connection: u64, turn: u64) -> bool {
        let machine = &self.machines[number];
        machine.connection == Some(connection) && machine.fetching.contains(&turn)
    }

    fn dials(&mut self, number: usize, process: u64) {
        let connection = self.number();
        self.connections.insert(connection, Connection::new(number, process));
        self.machines[number].dialled = Some(connection);
        let at = self.now + self.delay();
        self.agenda.enter(at, Happening::Joins { connection });
    }

    /// A stay is over: whatever hung on the connection ends with it.
    fn loses_coordinator(&mut self, number: usize, connection: u64) {
        if self.machines[number].connection != Some(connection) {
            let machine = &mut self.machines[number];
            // It was never let in on this one.
            if machine.dialled.take_if(|dialled| *dialled == connection).is_some() {
                let process = machine.process;
                self.later(number, process, 3000, AtWorker::Dials);
            }
            return;
        }
        self.story.tell(format!("m{number} has lost the coordinator"));
        self.end_stay(number, connection, 1000);
        self.tell_worker(number, WorkerInput::Lost);
        if self.machines[number].is_leaving {
            self.machines[number].end();
            return self.returns(number, 20_000);
        }
        let process = self.machines[number].process;
        self.later(number, process, 4000, AtWorker::Dials);
    }

    /// The connection and all links of a machine's worker break.
    pub(super) fn end_stay(&mut self, number: usize, connection: u64, most: u64) {
        let machine = &mut self.machines[number];
        machine.connection = None;
        machine.fetching.clear();
        let turns = std::mem::take(&mut machine.turns);
        for links in turns.into_values() {
            links.downlink.into_iter().chain(links.uplink).for_each(|link| self.break_link(link, most));
        }
        self.cut(connection, most);
    }

    fn frame_arrives(&mut self, number: usize, link: u64, frame: Frame) {
        let is_wanted = self.links.get(&link).is_some_and(|link| !link.is_broken && !link.is_parted);
        if !is_wanted {
            return;
        }
        self.machines[number].remember(&frame);
        let frame = self.with_old_rows(number, frame);
        if let Some(link) = self.links.get_mut(&link) {
            link.inbox.push_back(frame);
        }
    }

    /// A worker that takes frames of an old plan, if that is put in: for its state machine they look like new ones.
    fn with_old_rows(&mut self, number: usize, frame: Frame) -> Frame {
        let old = self.machines[number].old_frame.clone().filter(|old| old.kind == frame.kind);
        match old {
            Some(old) if self.plant == Some(Plant::OldFrameTaken) && self.random.percent(20) => {
                self.story.tell(format!("m{number} takes a frame of plan {} for one of {}", old.epoch, frame.epoch));
                Frame { epoch: frame.epoch, step: frame.step, ..old }
            }
            Some(_) | None => frame,
        }
    }

    pub(super) fn tell_worker(&mut self, number: usize, input: WorkerInput) {
        let now = self.instant();
        let worker = self.machines[number].worker.as_mut();
        let outputs = worker.map(|worker| worker.handle(now, input)).unwrap_or_default();
        self.worker_outputs(number, outputs);
    }

    /// Gives the compute thread what it is to do, and takes frames in, as far as there is room.
    fn keep_busy(&mut self, number: usize) {
        loop {
            self.compute(number);
            let machine = &self.machines[number];
            let Some(worker) = machine.worker.as_ref().filter(|_| !machine.is_stopped) else { return };
            let waiting = machine.turns.iter().find_map(|(&turn, links)| {
                let link = links.uplink.filter(|link| self.links.get(link).is_some_and(|l| !l.inbox.is_empty()))?;
                worker.has_room(turn).then_some(link)
            });
            let Some(link) = waiting else { return };
            let frame = self.links.get_mut(&link).and_then(|link| link.inbox.pop_front());
            if let Some(frame) = frame {
                self.tell_worker(number, WorkerInput::Frame { link, frame });
            }
        }
    }

    fn compute(&mut self, number: usize) {
        let now = self.instant();
        loop {
            let machine = &mut self.machines[number];
            let Some(worker) = machine.worker.as_mut().filter(|_| !machine.is_computing) else { return };
            let Some(rows) = worker.next_rows() else { return };
            let even = self.scenario.step + self.scenario.row * rows as u32;
            let uneven = machine.kind.slowness * self.random.within(85..115) as f64 / 100.0;
            let took = if rows > 0 { even.mul_f64(uneven) } else { Duration::from_micros(20) };
            let waited = self.now.saturating_sub(machine.idle_since);
            if worker.compute(now, took, waited) {
                machine.is_computing = true;
                let (process, at, what) = (machine.process, self.now + took, AtWorker::Computed);
                return self.agenda.enter(at, Happening::AtWorker { machine: number, process, what });
            }
            machine.idle_since = self.now;
        }
    }

    fn worker_outputs(&mut self, number: usize, outputs: Vec<WorkerOutput>) {
        for output in outputs {
            self.worker_output(number, output);
        }
    }

    fn worker_output(&mut self, number: usize, output: WorkerOutput) {
        let (process, connection) = (self.machines[number].process, self.machines[number].connection);
        match output {
            WorkerOutput::Tell(message) => {
                if let Some(connection) = connection {
                    self.send_to_coordinator(connection, message);
                }
            }
            WorkerOutput::Fetch { turn, needed_bytes, bytes } => self.fetch(number, turn, needed_bytes, bytes),
            WorkerOutput::StopFetch { turn } => {
                self.machines[number].fetching.remove(&turn);
            }
            WorkerOutput::Load { turn, bytes } => {
                let took = self.random.millis(50..500) + Duration::from_millis(bytes >> 20).mul_f64(5.0);
                let what = AtWorker::LoadEnds { turn, took };
                self.agenda.enter(self.now + took, Happening::AtWorker { machine: number, process, what });
            }
            WorkerOutput::Link { turn, epoch, upstream, downstream } => {
                let (uplink, downlink, since, waiting) = (None, None, self.now, Vec::new());
                let links = TurnLinks { epoch, upstream, downstream, uplink, downlink, since, waiting };
                self.machines[number].turns.insert(turn, links);
                self.later(number, process, 50, AtWorker::TriesLink { turn, since });
            }
            WorkerOutput::Unlink { turn } => self.unlink(number, turn),
            WorkerOutput::Read { turn, link } => {
                let links = self.machines[number].turns.get_mut(&turn);
                let earlier = links.and_then(|links| links.uplink.replace(link));
                earlier.filter(|&earlier| earlier != link).into_iter().for_each(|earlier| self.part(earlier));
            }
            WorkerOutput::Refuse { link } => self.break_link(link, 1000),
            WorkerOutput::Send { turn, frame } => self.send_downstream(number, turn, frame),
            WorkerOutput::Say(line) => self.story.tell(format!("m{number} says: {line}")),
            WorkerOutput::Leave(why) => {
                self.story.tell(format!("m{number} leaves: {why}"));
                if let Some(connection) = connection {
                    self.later(number, process, 200, AtWorker::LosesCoordinator { connection });
                }
            }
        }
    }

    fn fetch(&mut self, number: usize, turn: u64, needed_bytes: u64, bytes: u64) {
        let machine = &mut self.machines[number];
        let Some(connection) = machine.connection else { return };
        machine.fetching.insert(turn);
        let (process, memory_bytes) = (machine.process, machine.kind.memory_bytes);
        let took = self.random.millis(20..400) + Duration::from_millis(bytes >> 20).mul_f64(10.0);
        let mut outcome = Ok(bytes);
        if needed_bytes > memory_bytes {
            let (needed, has) = (needed_bytes >> 20, memory_bytes >> 20);
            self.find(format!("m{number} was given a shard for which it needs {needed} MiB, and has {has}"));
        } else if bytes > 0 && !self.calm && self.random.percent(self.scenario.fetches_fail) {
            outcome = Err("the coordinator has none of its bytes".to_owned());
        }
        let what = AtWorker::Fetching { connection, turn, bytes };
        self.agenda.enter(self.now + took / 2, Happening::AtWorker { machine: number, process, what });
        let what = AtWorker::FetchEnds { connection, turn, outcome };
        self.agenda.enter(self.now + took, Happening::AtWorker { machine: number, process, what });
    }

    /// Both links of a turn end in order: what was sent still arrives, and what arrives is wanted no more.
    fn unlink(&mut self, number: usize, turn: u64) {
        if let Some(uplink) = self.machines[number].turns.remove(&turn).and_then(|links| links.uplink) {
            self.part(uplink);
        }
    }

    fn part(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_parted = true;
            link.inbox.clear();
        }
    }

    fn send_downstream(&mut self, number: usize, turn: u64, frame: Frame) {
        let Some(links) = self.machines[number].turns.get_mut(&turn) else { return };
        let Some(link) = links.downlink else { return links.waiting.push(frame) };
        if let Some(faulty) = self.scenario.faulty.filter(|faulty| faulty.machine == number && !self.calm) {
            self.misbehave(faulty, link, &frame);
        }
        let bytes = frame.wire_bytes() as u64;
        if self.send_frame(link, frame) {
            let process = self.machines[number].process;
            self.later(number, process, 2, AtWorker::Sent { turn, bytes });
        }
    }

    /// A faulty worker sends what it should not before what it should.
    fn misbehave(&mut self, Faulty { machine: number, sends }: Faulty, link: u64, frame: &Frame) {
        let machine = &mut self.machines[number];
        let sent = machine.newest_sent.replace(frame.clone());
        machine.old_sent = sent.filter(|sent| sent.epoch < frame.epoch).or(machine.old_sent.take());
        let old = machine.old_sent.clone().filter(|old| old.kind == frame.kind);
        match (sends, old) {
            (Nonsense::FramesTwice, _) if self.random.percent(2) => {
                self.story.tell(format!("m{number} sends step {} of plan {} twice", frame.step, frame.epoch));
                self.send_frame(link, frame.clone());
            }
            (Nonsense::OldFrames, Some(old)) if self.random.percent(20) => {
                self.story.tell(format!("m{number} sends a frame of plan {} for plan {}", old.epoch, frame.epoch));
                self.send_frame(link, old);
            }
            (Nonsense::FramesTwice | Nonsense::OldFrames, _) => {}
        }
    }

    /// The link downstream is tried: whoever it goes to lets it in once it has its own route.
    fn tries_link(&mut self, number: usize, process: u64, turn: u64, since: Duration) {
        let machine = &self.machines[number];
        let Some(links) = machine.turns.get(&turn).filter(|links| links.downlink.is_none()) else { return };
        let (peer, epoch, downstream) = (machine.peer, links.epoch, links.downstream.clone());
        let from = LinkEnd::Worker { machine: number, process, turn };
        let to = match downstream {
            Downstream::Coordinator => machine.connection.map(|connection| LinkEnd::Coordinator { connection }),
            Downstream::Worker { peer: wanted, .. } => self
                .machine_of(wanted)
                .filter(|&target| {
                    let is_blocked = self.blocked.contains(&(number.min(target), number.max(target)));
                    let admits = |links: &TurnLinks| links.upstream == Upstream::Worker(peer);
                    let target = &self.machines[target];
                    !is_blocked && target.answers() && target.turns.values().any(admits)
                })
                .map(|target| LinkEnd::Worker { machine: target, process: self.machines[target].process, turn: 0 }),
        };
        if let Some(to) = to {
            let link = self.open_link(from, to, peer, epoch);
            let links = self.machines[number].turns.get_mut(&turn);
            let waiting = links.map(|links| {
                links.downlink = Some(link);
                std::mem::take(&mut links.waiting)
            });
            self.tell_worker(number, WorkerInput::DownstreamStands { turn });
            return waiting.into_iter().flatten().for_each(|frame| self.send_downstream(number, turn, frame));
        }
        if self.now.saturating_sub(since) >= LINK_DEADLINE {
            let text = "it cannot be reached".to_owned();
            return self.tell_worker(number, WorkerInput::DownstreamBroken { turn, text });
        }
        // That it is not let in shows only by the other side's closing.
        if self.random.percent(20) {
            self.tell_worker(number, WorkerInput::DownstreamStands { turn });
        }
        let at = self.now + RETRY_INTERVAL + self.delay();
        let what = AtWorker::TriesLink { turn, since };
        self.agenda.enter(at, Happening::AtWorker { machine: number, process, what });
    }

    /// As long as a link has carried nothing, it is made again.
    fn downstream_breaks(&mut self, number: usize, process: u64, link: u64, turn: u64) {
        let Some(links) = self.machines[number].turns.get_mut(&turn) else { return };
        if links.downlink != Some(link) {
            return;
        }
        links.downlink = None;
        let since = links.since;
        let has_carried = self.links.get(&link).is_none_or(|link| link.has_carried);
        if has_carried || self.now.saturating_sub(since) >= LINK_DEADLINE {
            let text = "the stream was reset".to_owned();
            return self.tell_worker(number, WorkerInput::DownstreamBroken { turn, text });
        }
        self.later(number, process, 300, AtWorker::TriesLink { turn, since });
    }
}

/// How long a link downstream is tried for.
const LINK_DEADLINE: Duration = Duration::from_secs(15);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
