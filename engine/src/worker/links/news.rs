//! What the tasks of the links report.

use std::time::Duration;

use qmesh_net::{LinkWay, PeerId, PlanEpoch};

use crate::worker::turn::Turn;

/// One incoming frame stream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct LinkId(pub(crate) u64);

/// What became of a link. Frames come another way, so that they can be left waiting.
#[derive(Debug)]
pub(crate) enum LinkNews {
    /// A frame stream came in.
    Arrived { link: LinkId, peer: PeerId, epoch: PlanEpoch },
    /// An incoming stream broke.
    UpstreamBroken { link: LinkId, text: String },
    /// The link downstream stands, and to a worker in this way.
    DownstreamStands { turn: Turn, way: Option<LinkWay> },
    /// A frame is in the send buffer.
    Sent { turn: Turn, bytes: u64, took: Duration },
    /// The link downstream broke, or could not be made.
    DownstreamBroken { turn: Turn, text: String },
}
