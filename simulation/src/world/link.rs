//! Connections and links: what travels on them, in order and with a delay, and how they break.

use std::{collections::VecDeque, time::Duration};

use qmesh_net::{Frame, Message, PeerId, PlanEpoch};

use super::World;
use crate::agenda::{AtWorker, Happening};

/// A connection between the coordinator and a worker.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) machine: usize,
    /// The worker's process.
    pub(super) process: u64,
    /// Whether what is sent arrives.
    pub(super) is_open: bool,
    /// Whether the coordinator has let it in and has not lost it.
    pub(super) is_known: bool,
    to_worker: Duration,
    to_coordinator: Duration,
}

/// A stream of frames.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) from: LinkEnd,
    pub(super) to: LinkEnd,
    /// Who sends.
    pub(super) peer: PeerId,
    pub(super) epoch: PlanEpoch,
    /// Nothing arrives any more.
    pub(super) is_broken: bool,
    /// The receiver wants nothing more.
    pub(super) is_parted: bool,
    /// Whether a frame was ever sent on it.
    pub(super) has_carried: bool,
    /// Frames that arrived, and were not taken in.
    pub(super) inbox: VecDeque<Frame>,
    last_arrival: Duration,
}

/// An end of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LinkEnd {
    /// The coordinator's, on this connection.
    Coordinator { connection: u64 },
    /// A worker's process, and of the sender its turn.
    Worker { machine: usize, process: u64, turn: u64 },
}

impl Connection {
    pub(super) fn new(machine: usize, process: u64) -> Self {
        let (to_worker, to_coordinator) = (Duration::ZERO, Duration::ZERO);
        Self { machine, process, is_open: true, is_known: false, to_worker, to_coordinator }
    }
}

impl World {
    /// Something for the worker at the other end of a connection, behind all that was sent to it before.
    pub(super) fn send_to_worker(&mut self, connection: u64, what: AtWorker) {
        let at = self.now + self.delay();
        let Some(over) = self.connections.get_mut(&connection).filter(|over| over.is_open) else { return };
        over.to_worker = at.max(over.to_worker + Duration::from_micros(1));
        let (at, machine, process) = (over.to_worker, over.machine, over.process);
        self.agenda.enter(at, Happening::AtWorker { machine, process, what });
    }

    /// The same the other way.
    pub(super) fn send_to_coordinator(&mut self, connection: u64, message: Message) {
        let at = self.now + self.delay();
        let Some(over) = self.connections.get_mut(&connection).filter(|over| over.is_open) else { return };
        over.to_coordinator = at.max(over.to_coordinator + Duration::from_micros(1));
        let at = over.to_coordinator;
        self.story.totals.frames += 1;
        self.agenda.enter(at, Happening::ToCoordinator { connection, message });
    }

    /// Nothing arrives any more on a connection, or on a link that goes over it. Both ends notice within `most` milliseconds.
    pub(super) fn cut(&mut self, connection: u64, most: u64) {
        let Some(over) = self.connections.get_mut(&connection).filter(|over| over.is_open) else { return };
        over.is_open = false;
        let (machine, process) = (over.machine, over.process);
        let at = self.now + self.random.millis(0..most);
        self.agenda.enter(at, Happening::CoordinatorLoses { connection });
        self.later(machine, process, most, AtWorker::LosesCoordinator { connection });
        let end = LinkEnd::Coordinator { connection };
        let over = self.links.iter().filter(|(_, link)| link.from == end || link.to == end);
        let over: Vec<u64> = over.map(|(&link, _)| link).collect();
        over.into_iter().for_each(|link| self.break_link(link, most));
    }

    /// Something at a worker within `most` milliseconds.
    pub(super) fn later(&mut self, machine: usize, process: u64, most: u64, what: AtWorker) {
        let at = self.now + self.random.millis(0..most);
        self.agenda.enter(at, Happening::AtWorker { machine, process, what });
    }

    /// A new link, whose far end hears of it.
    pub(super) fn open_link(&mut self, from: LinkEnd, to: LinkEnd, peer: PeerId, epoch: PlanEpoch) -> u64 {
        let number = self.number();
        let last_arrival = self.now + self.delay();
        let (is_broken, is_parted, has_carried, inbox) = (false, false, false, VecDeque::new());
        let link = Link { from, to, peer, epoch, is_broken, is_parted, has_carried, inbox, last_arrival };
        self.links.insert(number, link);
        if let LinkEnd::Worker { machine, process, .. } = to {
            let what = AtWorker::LinkArrives { link: number };
            self.agenda.enter(last_arrival, Happening::AtWorker { machine, process, what });
        }
        number
    }

    /// Sends a frame on a link; whether it may arrive.
    pub(super) fn send_frame(&mut self, number: u64, frame: Frame) -> bool {
        let at = self.now + self.delay();
        let Some(link) = self.links.get_mut(&number) else { return false };
        link.has_carried = true;
        if link.is_broken {
            let sender = link.from;
            self.sender_notices(number, sender, 1000);
            return false;
        }
        link.last_arrival = at.max(link.last_arrival + Duration::from_micros(1));
        let (at, to) = (link.last_arrival, link.to);
        self.story.totals.frames += 1;
        match to {
            LinkEnd::Coordinator { .. } => self.agenda.enter(at, Happening::FromPipeline { link: number, frame }),
            LinkEnd::Worker { machine, process, .. } => {
                let what = AtWorker::FrameArrives { link: number, frame };
                self.agenda.enter(at, Happening::AtWorker { machine, process, what });
            }
        }
        true
    }

    /// Nothing arrives any more on a link. Both ends notice within `most` milliseconds.
    pub(super) fn break_link(&mut self, number: u64, most: u64) {
        let Some(link) = self.links.get_mut(&number).filter(|link| !link.is_broken) else { return };
        link.is_broken = true;
        let (from, to) = (link.from, link.to);
        self.sender_notices(number, from, most);
        if let LinkEnd::Worker { machine, process, .. } = to {
            self.later(machine, process, most, AtWorker::UpstreamBreaks { link: number });
        }
    }

    fn sender_notices(&mut self, link: u64, sender: LinkEnd, most: u64) {
        match sender {
            LinkEnd::Coordinator { .. } => {
                let at = self.now + self.random.millis(0..most);
                self.agenda.enter(at, Happening::FeedBreaks { link });
            }
            LinkEnd::Worker { machine, process, turn } => {
                self.later(machine, process, most, AtWorker::DownstreamBreaks { link, turn });
            }
        }
    }
}
