//! What is still to happen, in the order of its time.

use std::{collections::BTreeMap, time::Duration};

use qmesh_net::{DraftAnswer, Frame, Message, SessionId};

/// Something that is going to happen.
#[derive(Debug)]
pub enum Happening {
    /// Time passes at the coordinator.
    CoordinatorTick,
    /// Somebody asks for a text.
    Request,
    /// Somebody stops listening.
    Cancel(SessionId),
    /// Something goes wrong.
    Mishap,
    /// Nothing goes wrong any more, and what went wrong is mended.
    Calm,
    /// The coordinator lets a connection in.
    Joins {
        /// Which.
        connection: u64,
    },
    /// A message arrives at the coordinator.
    ToCoordinator {
        /// On which connection.
        connection: u64,
        /// What.
        message: Message,
    },
    /// The coordinator notices that a connection is gone.
    CoordinatorLoses {
        /// Which.
        connection: u64,
    },
    /// A link's end at the coordinator, or that link's way there, has something.
    FromPipeline {
        /// Which link.
        link: u64,
        /// The frame.
        frame: Frame,
    },
    /// The coordinator notices that its link to a first stage is gone.
    FeedBreaks {
        /// Which link.
        link: u64,
    },
    /// A worker does or hears something, if its process is still the one that this was meant for.
    AtWorker {
        /// Which machine.
        machine: usize,
        /// Of how many processes it was the last when this was planned.
        process: u64,
        /// What.
        what: AtWorker,
    },
    /// The model that drafts says something.
    Drafted(DraftAnswer),
    /// The process of the model that drafts ends.
    DrafterEnds,
    /// A machine starts a worker, or goes on with the one that was stopped.
    Starts {
        /// Which.
        machine: usize,
    },
}

/// What happens at a worker.
#[derive(Debug)]
pub enum AtWorker {
    /// It dials the coordinator.
    Dials,
    /// It is let in.
    Joined {
        /// On which connection.
        connection: u64,
    },
    /// A message arrives.
    Hears {
        /// On which connection.
        connection: u64,
        /// What.
        message: Message,
    },
    /// It notices that the connection to the coordinator is gone.
    LosesCoordinator {
        /// Which.
        connection: u64,
    },
    /// A second has passed.
    Tick,
    /// Half of a fetch is done.
    Fetching {
        /// On which connection.
        connection: u64,
        /// Of which turn.
        turn: u64,
        /// Bytes in all.
        bytes: u64,
    },
    /// A fetch is over.
    FetchEnds {
        /// On which connection.
        connection: u64,
        /// Of which turn.
        turn: u64,
        /// Bytes that came, or why they did not.
        outcome: Result<u64, String>,
    },
    /// A shard is loaded.
    LoadEnds {
        /// Of which turn.
        turn: u64,
        /// How long it took.
        took: Duration,
    },
    /// The compute thread has done a command.
    Computed,
    /// The link downstream is tried.
    TriesLink {
        /// Of which turn.
        turn: u64,
        /// When it began to.
        since: Duration,
    },
    /// A link from upstream arrives.
    LinkArrives {
        /// Which.
        link: u64,
    },
    /// A frame arrives.
    FrameArrives {
        /// On which link.
        link: u64,
        /// The frame.
        frame: Frame,
    },
    /// A frame is in the send buffer.
    Sent {
        /// Of which turn.
        turn: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// It notices that a link from upstream broke.
    UpstreamBreaks {
        /// Which.
        link: u64,
    },
    /// It notices that its link downstream broke.
    DownstreamBreaks {
        /// Which.
        link: u64,
        /// Of which turn.
        turn: u64,
    },
}

/// All that is still to happen.
#[derive(Debug, Default)]
pub struct Agenda {
    entries: BTreeMap<(Duration, u64), Happening>,
    entered: u64,
}

impl Agenda {
    /// Enters something for a time; of two for the same time, the one that was entered first happens first.
    pub fn enter(&mut self, at: Duration, happening: Happening) {
        self.entered += 1;
        self.entries.insert((at, self.entered), happening);
    }

    /// The next thing, and when it happens.
    pub fn pop(&mut self) -> Option<(Duration, Happening)> {
        self.entries.pop_first().map(|((at, _), happening)| (at, happening))
    }
}
