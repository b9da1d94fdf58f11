//! What happens at the coordinator, and what it wants done.

use std::time::Duration;

use qmesh_coordinator::mesh::{
    events::MeshEvent,
    simulation::{CoordinatorOutput, SimulatedJoin},
};
use qmesh_net::{FaultCode, Frame, Message, PeerId, PlanEpoch, ShardPhase};

use super::{World, link::LinkEnd};
use crate::{
    Plant,
    agenda::{AtWorker, Happening},
};

/// The coordinator's key.
pub(super) const COORDINATOR: PeerId = PeerId([255; 32]);

impl World {
    pub(super) fn coordinator_tick(&mut self) {
        self.coordinator.tick(self.instant());
        self.carry_out();
        self.look_for_quiet();
        let idle = self.calm && self.coordinator.is_idle();
        self.agenda.enter(self.now + if idle { TICK_IDLE } else { TICK }, Happening::CoordinatorTick);
    }

    pub(super) fn joins(&mut self, connection: u64) {
        let Some(over) = self.connections.get_mut(&connection).filter(|over| over.is_open) else { return };
        over.is_known = true;
        let number = over.machine;
        let machine = &self.machines[number];
        let join = SimulatedJoin {
            name: format!("m{number}"),
            peer: machine.peer,
            address: machine.address,
            memory_bytes: machine.kind.memory_bytes,
            threads: machine.kind.threads.get() as u32,
        };
        let name = self.coordinator.joined(self.instant(), connection, join);
        self.story.tell(format!("m{number} joins as {name}, worker {connection}"));
        self.machines[number].name = name;
        self.send_to_worker(connection, AtWorker::Joined { connection });
        self.carry_out();
    }

    pub(super) fn coordinator_hears(&mut self, connection: u64, message: Message) {
        let Some(over) = self.connections.get(&connection).filter(|over| over.is_open && over.is_known) else { return };
        self.judge(over.machine, &message);
        self.coordinator.said(self.instant(), connection, message);
        self.carry_out();
    }

    pub(super) fn coordinator_loses(&mut self, connection: u64) {
        let Some(over) = self.connections.get_mut(&connection) else { return };
        if std::mem::take(&mut over.is_known) {
            self.coordinator.left(self.instant(), connection, "the connection is lost");
            self.carry_out();
        }
    }

    /// A frame arrives from a last stage.
    pub(super) fn frame_from_pipeline(&mut self, link: u64, frame: &Frame) {
        let Some(link) = self.links.get(&link).filter(|link| !link.is_broken) else { return };
        let LinkEnd::Coordinator { connection } = link.to else { return };
        if self.connections.get(&connection).is_some_and(|over| over.is_open && over.is_known) {
            self.coordinator.sampled(self.instant(), connection, frame);
            self.carry_out();
        }
    }

    pub(super) fn feed_breaks(&mut self, link: u64) {
        // Who sends next finds the way gone.
        self.feeds.retain(|_, feed| *feed != link);
    }

    /// Carries out what the coordinator wants, and what follows from that.
    pub(super) fn carry_out(&mut self) {
        self.outputs();
        self.coordinator.pump(self.instant());
        self.outputs();
    }

    fn outputs(&mut self) {
        while let Some(output) = self.coordinator.next_output() {
            match output {
                CoordinatorOutput::Send { worker, message } => self.send(worker, message),
                CoordinatorOutput::HangUp { worker, text } => self.hang_up(worker, &text),
                CoordinatorOutput::OpenFrames { worker, epoch } => self.open_feed(worker, epoch),
                CoordinatorOutput::CloseFrames { epoch } => {
                    self.feeds.remove(&epoch);
                }
                CoordinatorOutput::Frame(frame) => self.feed(frame),
                CoordinatorOutput::Draft(order) => self.draft(order),
                CoordinatorOutput::Tell { session, event } => self.told(session, event),
                CoordinatorOutput::TellNoMore { session } => self.told_no_more(session),
                CoordinatorOutput::Publish(event) => self.published(&event),
            }
        }
    }

    fn send(&mut self, connection: u64, message: Message) {
        if self.plant == Some(Plant::SessionNeverClosed)
            && matches!(message, Message::Close { .. })
            && self.random.percent(30)
        {
            return;
        }
        self.story.totals.frames += 1;
        self.send_to_worker(connection, AtWorker::Hears { connection, message });
    }

    fn hang_up(&mut self, connection: u64, text: &str) {
        let machine = self.connections.get(&connection).map(|over| over.machine);
        let line = format!("the coordinator hangs up on worker {connection}: {text}");
        self.story.tell(line.clone());
        let is_faulty = self.scenario.faulty.is_some_and(|faulty| machine == Some(faulty.machine));
        if !is_faulty || !self.has_refused_frames() {
            self.find(line);
        }
        self.cut(connection, 100);
    }

    fn open_feed(&mut self, connection: u64, epoch: PlanEpoch) {
        let Some(over) = self.connections.get(&connection) else { return };
        let to = LinkEnd::Worker { machine: over.machine, process: over.process, turn: 0 };
        let is_open = over.is_open;
        let link = self.open_link(LinkEnd::Coordinator { connection }, to, COORDINATOR, epoch);
        self.feeds.insert(epoch, link);
        if !is_open {
            self.break_link(link, 5000);
        }
    }

    fn feed(&mut self, frame: Frame) {
        let epoch = frame.epoch;
        match self.feeds.get(&epoch).copied() {
            Some(link) => {
                self.send_frame(link, frame);
            }
            None => self.coordinator.frames_lost(self.instant(), epoch),
        }
    }

    fn published(&mut self, event: &MeshEvent) {
        self.story.totals.plans += usize::from(matches!(event, MeshEvent::PlanMade { .. }));
        let quiet = matches!(event, MeshEvent::RequestStarted { .. } | MeshEvent::WorkerJoined { .. });
        if !quiet {
            self.story.tell(format!("{event:?}"));
        }
    }

    /// What no worker says in an honest world.
    fn judge(&mut self, machine: usize, message: &Message) {
        let name = format!("m{machine}");
        if let Message::Fault(fault) = message
            && fault.code != FaultCode::Link
        {
            self.find_if_honest(format!("{name} has a fault: {fault:?}"));
        } else if let Message::Refused { session, text, .. } = message {
            self.find_if_honest(format!("{name} refuses session {session}: {text}"));
        } else if let Message::ShardStatus(status) = message
            && status.phase == ShardPhase::Failed
        {
            self.story.tell(format!("{name} cannot load plan {}: {}", status.epoch, status.text));
        }
    }
}

/// How often time passes for the coordinator.
const TICK: Duration = Duration::from_millis(100);
/// The same where nothing runs and nothing goes wrong any more.
const TICK_IDLE: Duration = Duration::from_millis(500);
