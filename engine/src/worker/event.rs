//! What a worker's state machine is told, and what it wants done.

use std::{sync::Arc, time::Duration};

use qmesh_net::{Downstream, Frame, Message, PeerId, PlanEpoch, Upstream};

use super::{
    assignment::Assignment,
    compute::{Command, Done},
    loading::Loading,
    store::Weights,
};
use crate::shard::PackedTensors;

/// One assignment of this process. Unlike plan epochs, turns do not start over when the coordinator does.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Turn(pub(super) u64);

/// One incoming frame stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct LinkId(pub(super) u64);

/// How closely tensors that are on this machine are looked at before they are taken for what their names say. Whatever is
/// loaded is checked byte for byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scrutiny {
    /// Whether they are there, as long as they must be.
    Lengths,
    /// Every byte: some of them were wrong.
    Contents,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The coordinator let this worker in.
    Joined { coordinator: PeerId },
    /// The coordinator said something.
    Message(Message),
    /// The link to the coordinator is gone.
    Lost,
    /// So many of the missing bytes are at hand.
    Fetching { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// The disk has no room for them at present.
    DiskFull { turn: Turn, text: String },
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
    /// Check that the shard fits beside the others, then have the tensors that it has not taken over.
    Fetch {
        turn: Turn,
        assignment: Arc<Assignment>,
        taken_over: Arc<PackedTensors>,
        beside: Vec<Arc<Assignment>>,
        scrutiny: Scrutiny,
    },
    /// Stop having a turn's tensors.
    StopFetch { turn: Turn },
    /// Load a shard, beside what is computed.
    Load(Loading),
    /// Let the compute thread do this.
    Compute(Command),
    /// Admit the upstream and make the link downstream.
    Link { turn: Turn, epoch: PlanEpoch, upstream: Upstream, downstream: Downstream },
    /// End the links of a turn in order.
    Unlink { turn: Turn },
    /// Read frames for a turn from this incoming link, and from no other.
    Read { turn: Turn, link: LinkId },
    /// Drop this incoming link.
    Refuse(LinkId),
    /// Send this frame downstream.
    Send { turn: Turn, frame: Frame },
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
