//! What a worker's state machine is told, and what it wants done.

use std::{sync::Arc, time::Duration};

use qmesh_net::{Downstream, Frame, Message, PeerId, PlanEpoch, Upstream};

use super::{
    assignment::Assignment,
    compute::{Command, Done},
    store::Weights,
};

/// One assignment of this process. Unlike plan epochs, turns do not start over when the coordinator does.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Turn(pub(super) u64);

/// One incoming frame stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct LinkId(pub(super) u64);

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The coordinator let this worker in.
    Joined { coordinator: PeerId },
    /// The coordinator said something.
    Message(Message),
    /// The link to the coordinator is gone.
    Lost,
    /// So many bytes of the shard are at hand.
    Fetching { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// All tensors are at hand, `bytes` of them came over the network.
    Fetched { turn: Turn, bytes: u64, weights: Weights },
    /// They could not be had.
    NotFetched { turn: Turn, text: String },
    /// The compute thread finished something.
    Done(Done),
    /// A frame stream came in.
    Arrived { link: LinkId, peer: PeerId, epoch: PlanEpoch },
    /// A frame came in.
    Frame { link: LinkId, frame: Frame },
    /// An incoming stream broke.
    Broken { link: LinkId, text: String },
    /// The own link downstream stands.
    Outgoing { turn: Turn },
    /// A frame is in the send buffer.
    Sent { turn: Turn, bytes: u64, took: Duration },
    /// The own link downstream broke, or could not be made.
    OutgoingBroken { turn: Turn, text: String },
    /// A second has passed.
    Tick,
    /// The user wants the worker to leave.
    Asked,
}

/// What to do about it, in order.
#[derive(Debug)]
pub(super) enum Action {
    /// Tell the coordinator. Peak memory is filled in on the way.
    Tell(Message),
    /// Check that the shard fits, then have its tensors; replaces an earlier `Fetch`.
    Fetch { turn: Turn, assignment: Arc<Assignment> },
    /// Stop having tensors.
    StopFetch,
    /// Let the compute thread do this.
    Compute(Command),
    /// Admit the upstream and make the link downstream.
    Link { turn: Turn, epoch: PlanEpoch, upstream: Upstream, downstream: Downstream },
    /// Drop the links of earlier turns.
    Unlink,
    /// Read frames from this incoming link, and from no other.
    Read(LinkId),
    /// Drop this incoming link.
    Refuse(LinkId),
    /// Send this frame downstream.
    Send(Frame),
    /// One line for the person at the worker.
    Say(String),
    /// The link to the coordinator has no more use.
    Leave(Departure),
}

/// Why a worker leaves its coordinator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Departure {
    /// The user wants it.
    Asked,
    /// The coordinator said so, in these words.
    Dismissed(String),
}
