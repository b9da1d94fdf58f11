//! A machine: the worker that runs there, or does not, and what it is at.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use qmesh_engine::worker::simulation::SimulatedWorker;
use qmesh_net::{Downstream, Frame, PeerId, PlanEpoch, Upstream};

use crate::{
    Plant,
    agenda::AtWorker,
    books::{Books, HashBackend},
    scenario::MachineKind,
};

/// One machine.
pub(super) struct Machine {
    pub(super) kind: MachineKind,
    /// What the coordinator last called its worker.
    pub(super) name: String,
    /// Its worker's key, which outlives the process.
    pub(super) peer: PeerId,
    pub(super) address: SocketAddr,
    /// What its shards have done.
    pub(super) books: Books,
    pub(super) worker: Option<SimulatedWorker>,
    /// Processes that it has had.
    pub(super) process: u64,
    /// Stopped: it lives, and does nothing.
    pub(super) is_stopped: bool,
    /// What is to happen when it goes on.
    pub(super) deferred: VecDeque<AtWorker>,
    /// On which it was let in.
    pub(super) connection: Option<u64>,
    /// On which it asks to be let in.
    pub(super) dialled: Option<u64>,
    pub(super) turns: BTreeMap<u64, TurnLinks>,
    pub(super) fetching: BTreeSet<u64>,
    pub(super) is_computing: bool,
    pub(super) idle_since: Duration,
    /// The last frame of an older plan.
    pub(super) old_frame: Option<Frame>,
    newest_frame: Option<Frame>,
    /// The same of those that a faulty worker has sent.
    pub(super) old_sent: Option<Frame>,
    pub(super) newest_sent: Option<Frame>,
    /// Its user wants it to leave.
    pub(super) is_leaving: bool,
    /// What is wrong with it on purpose.
    plant: Option<Plant>,
}

/// The links of one turn.
pub(super) struct TurnLinks {
    pub(super) epoch: PlanEpoch,
    pub(super) upstream: Upstream,
    pub(super) downstream: Downstream,
    pub(super) uplink: Option<u64>,
    pub(super) downlink: Option<u64>,
    /// Since when the downlink is tried.
    pub(super) since: Duration,
    /// Frames for a downlink that is being made again.
    pub(super) waiting: Vec<Frame>,
}

impl Machine {
    pub(super) fn new(number: usize, kind: MachineKind, plant: Option<Plant>) -> Self {
        let octet = u8::try_from(number + 1).unwrap_or(u8::MAX);
        Self {
            kind,
            name: String::new(),
            peer: PeerId([octet; 32]),
            address: SocketAddr::from(([10, 0, 0, octet], 4100)),
            books: Books::default(),
            worker: None,
            process: 0,
            is_stopped: false,
            deferred: VecDeque::new(),
            connection: None,
            dialled: None,
            turns: BTreeMap::new(),
            fetching: BTreeSet::new(),
            is_computing: false,
            idle_since: Duration::ZERO,
            old_frame: None,
            newest_frame: None,
            old_sent: None,
            newest_sent: None,
            is_leaving: false,
            plant,
        }
    }

    /// A new process, without anything that the last one had.
    pub(super) fn start(&mut self, now: Duration) {
        self.end();
        let backend = HashBackend { threads: self.kind.threads, books: self.books.clone(), plant: self.plant };
        self.worker = Some(SimulatedWorker::new(Arc::new(backend)));
        self.process += 1;
        self.idle_since = now;
    }

    /// The process ends at once.
    pub(super) fn end(&mut self) {
        self.worker = None;
        self.books = Books::default();
        self.is_stopped = false;
        self.is_computing = false;
        self.is_leaving = false;
        (self.connection, self.dialled) = (None, None);
        self.deferred.clear();
        self.turns.clear();
        self.fetching.clear();
        (self.old_frame, self.newest_frame, self.old_sent, self.newest_sent) = (None, None, None, None);
    }

    /// Whether it can answer.
    pub(super) fn answers(&self) -> bool {
        self.worker.is_some() && !self.is_stopped
    }

    /// A frame passes: the last one of an older plan is remembered.
    pub(super) fn remember(&mut self, frame: &Frame) {
        let passed = self.newest_frame.replace(frame.clone());
        self.old_frame = passed.filter(|passed| passed.epoch < frame.epoch).or(self.old_frame.take());
    }
}
