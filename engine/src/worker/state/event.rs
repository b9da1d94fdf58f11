//! What a worker's state machine is told, and what it wants done.

use qmesh_net::{Frame, Measure, Message, PeerId, PeerWays, Route};

use crate::worker::{
    compute::{Command, Done, LoadRequest},
    links::{LinkId, LinkNews},
    rendezvous::Errand,
    tensors::{FetchNews, FetchRequest, Offer},
    turn::Turn,
};

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The coordinator let this worker in.
    Joined { coordinator: PeerId },
    /// The coordinator said something.
    Message(Message),
    /// The link to the coordinator is gone.
    Lost,
    /// How getting a shard's tensors goes.
    Fetch(FetchNews),
    /// How loading a shard goes, or what the compute thread has finished.
    Done(Done),
    /// Something became of a link.
    Link(LinkNews),
    /// A frame came in.
    Frame { link: LinkId, frame: Frame },
    /// A second has passed.
    Tick,
    /// The user wants the worker to leave.
    Asked,
}

/// What to do about it, in order.
#[derive(Debug)]
pub(crate) enum Action {
    /// Tell the coordinator. Peak memory is filled in on the way.
    Tell(Message),
    /// Check that the shard fits beside the others, then get the tensors that it has not taken over.
    Fetch(FetchRequest),
    /// Stop getting a turn's tensors.
    StopFetch { turn: Turn },
    /// From now on exactly these workers may ask for tensors, and exactly these are on their way here.
    Offer(Offer),
    /// Load a shard, beside what is computed.
    Load(LoadRequest),
    /// Let the compute thread do this.
    Compute(Command),
    /// Admit the upstream and make the link downstream.
    Link { turn: Turn, route: Route, ways: PeerWays },
    /// End the links of a turn in order.
    Unlink { turn: Turn },
    /// Read frames for a turn from this incoming link, and from no other.
    Read { turn: Turn, link: LinkId },
    /// Drop this incoming link.
    Refuse(LinkId),
    /// Send this frame downstream.
    Send { turn: Turn, frame: Frame },
    /// Find out how fast this machine is, beside whatever it does.
    Measure(Measure),
    /// Do what a rendezvous does.
    Rendezvous(Errand),
    /// One line for the person at the worker.
    Say(String),
    /// The link to the coordinator has no more use.
    Leave(Departure),
}

/// Why a worker leaves its coordinator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Departure {
    /// The user wants it.
    Asked,
    /// The coordinator said so, in these words.
    Dismissed(String),
}
