//! The near ends of a stage's two links.

use std::{collections::BTreeMap, future::poll_fn, task::Poll};

use qmesh_models::footprint::FRAMES_HELD;
use qmesh_net::{Frame, FrameReceiver, Meeting, PeerId, Upstream};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    downstream::QueuedFrame,
    news::{LinkId, LinkNews},
    upstream::{ArrivedFrame, UpstreamLink},
};
use crate::worker::turn::Turn;

/// Both links of one turn. When it is dropped, they end in order.
pub(crate) struct StageLinks {
    /// The worker that may connect, if frames come from one.
    neighbour: Option<PeerId>,
    downstream: mpsc::Sender<QueuedFrame>,
    upstream: Option<UpstreamEnd>,
    /// Lets the neighbour's packets in.
    _meeting: Option<Meeting>,
    /// Whether the state machine has room for another frame.
    has_room: bool,
}

/// The near end of a link from upstream.
struct UpstreamEnd {
    arrived: mpsc::Receiver<ArrivedFrame>,
    /// Dropped with it, which tells the far end.
    _parting: oneshot::Sender<()>,
}

impl StageLinks {
    /// The links of a turn whose frames come from `upstream`, whom `meeting` lets in, and go to the receiver.
    pub(crate) fn new(upstream: Upstream, meeting: Option<Meeting>) -> (Self, mpsc::Receiver<QueuedFrame>) {
        let neighbour = match upstream {
            Upstream::Coordinator => None,
            Upstream::Worker(peer) => Some(peer),
        };
        let (downstream, frames) = mpsc::channel(FRAMES_HELD);
        (Self { neighbour, downstream, upstream: None, _meeting: meeting, has_room: false }, frames)
    }

    /// The worker that may connect, if frames come from one.
    pub(crate) fn neighbour(&self) -> Option<PeerId> {
        self.neighbour
    }

    /// Takes frames from this link, and from an earlier one no more.
    pub(crate) fn read(&mut self, link: LinkId, receiver: FrameReceiver, news: mpsc::Sender<LinkNews>) -> UpstreamLink {
        let (part, parting) = oneshot::channel();
        let (frames, arrived) = mpsc::channel(1);
        self.upstream = Some(UpstreamEnd { arrived, _parting: part });
        UpstreamLink { link, receiver, frames, news, parting }
    }

    /// Sends a frame. The state machine never has more of them on their way than there is room for.
    pub(crate) fn send(&self, frame: Frame) {
        let sent = self.downstream.try_send(QueuedFrame { since: Instant::now(), frame });
        debug_assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))));
    }

    /// Whether another frame may be taken in.
    pub(crate) fn set_room(&mut self, has_room: bool) {
        self.has_room = has_room;
    }
}

/// The next frame of a stage that has room for it. Cancel-safe.
pub(crate) async fn next_frame(links: &mut BTreeMap<Turn, StageLinks>) -> ArrivedFrame {
    poll_fn(|context| {
        for links in links.values_mut().filter(|links| links.has_room) {
            let upstream = links.upstream.as_mut();
            if let Some(Poll::Ready(Some(arrived))) = upstream.map(|end| end.arrived.poll_recv(context)) {
                return Poll::Ready(arrived);
            }
        }
        Poll::Pending
    })
    .await
}
