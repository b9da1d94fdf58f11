//! The tasks that move frames between links and the state machine, and decide nothing.

use std::{collections::BTreeMap, future::poll_fn, task::Poll, time::Duration};

use qmesh_models::footprint::FRAMES_HELD;
use qmesh_net::{
    Connection, Downstream, Endpoint, Frame, FrameReceiver, FrameSender, Incoming as Stream, NetError, PeerId,
    PlanEpoch, StepId, Upstream,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::event::{Event, LinkId, Turn};

/// How long a link downstream is tried for: its admission follows a message that may still be on its way.
const LINK_DEADLINE: Duration = Duration::from_secs(15);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How long frames of a plan that is no more are taken in: its end reaches all stages within a moment.
const PARTING_DEADLINE: Duration = Duration::from_secs(15);
/// Neighbours that may be connected at a time: the old upstream and the new one, and a few to spare.
const NEIGHBOURS: usize = 8;

/// Hands on every link that neighbours open, until dropped.
pub(super) async fn accept_neighbours(endpoint: Endpoint, arrivals: mpsc::Sender<FrameReceiver>) {
    let mut neighbours = JoinSet::new();
    while let Some(connection) = endpoint.accept().await {
        if neighbours.len() >= NEIGHBOURS {
            neighbours.join_next().await;
        }
        while neighbours.try_join_next().is_some() {}
        neighbours.spawn(accept_links(connection, arrivals.clone()));
    }
}

/// Hands on every link that comes in on one connection, until it is gone.
pub(super) async fn accept_links(connection: Connection, arrivals: mpsc::Sender<FrameReceiver>) {
    loop {
        match connection.accept_stream().await {
            Ok(Stream::Frames(receiver)) => {
                if arrivals.send(receiver).await.is_err() {
                    return;
                }
            }
            Ok(Stream::Range(server)) => {
                if let Err(error) = server.refuse("workers serve no tensors").await {
                    tracing::debug!(%error, "could not refuse a range request");
                }
            }
            Err(error) => return tracing::debug!(%error, "no more links"),
        }
    }
}

/// A link from upstream.
pub(super) struct Incoming {
    pub(super) link: LinkId,
    pub(super) receiver: FrameReceiver,
    pub(super) frames: mpsc::Sender<(LinkId, Frame)>,
    pub(super) events: mpsc::Sender<Event>,
    /// Its sender is dropped when nobody wants the frames any more.
    pub(super) parting: oneshot::Receiver<()>,
}

impl Incoming {
    /// Hands on the frames until the link ends, or until nobody wants them any more.
    pub(super) async fn run(mut self) {
        loop {
            let frame = tokio::select! {
                _ = &mut self.parting => return self.drain().await,
                frame = self.receiver.recv() => frame,
            };
            match frame {
                Ok(Some(frame)) => tokio::select! {
                    _ = &mut self.parting => return self.drain().await,
                    sent = self.frames.send((self.link, frame)) => if sent.is_err() {
                        return self.drain().await;
                    },
                },
                // Its sender has a new plan.
                Ok(None) => return,
                Err(error) => {
                    let _ = self.events.send(Event::Broken { link: self.link, text: error.to_string() }).await;
                    return;
                }
            }
        }
    }

    /// Takes what still comes: whoever sends it ends the link when he hears of the new plan, and must not find it broken.
    async fn drain(mut self) {
        let ended = async { while let Ok(Some(_)) = self.receiver.recv().await {} };
        if timeout(PARTING_DEADLINE, ended).await.is_err() {
            tracing::debug!(peer = %self.receiver.peer().short(), "a link of an old plan does not end");
        }
    }
}

/// Both links of one turn. When it is dropped, they end in order.
pub(super) struct Lane {
    /// The worker that may connect, if frames come from one.
    neighbour: Option<PeerId>,
    downstream: mpsc::Sender<(Instant, Frame)>,
    upstream: Option<Frames>,
    /// Whether the state machine has room for another frame.
    has_room: bool,
}

/// The near end of a link from upstream.
struct Frames {
    arrived: mpsc::Receiver<(LinkId, Frame)>,
    /// Dropped with it, which tells the far end.
    _parting: oneshot::Sender<()>,
}

impl Lane {
    /// The links of a turn whose frames come from `upstream`, and go to the receiver.
    pub(super) fn new(upstream: Upstream) -> (Self, mpsc::Receiver<(Instant, Frame)>) {
        let neighbour = match upstream {
            Upstream::Coordinator => None,
            Upstream::Worker(peer) => Some(peer),
        };
        let (downstream, frames) = mpsc::channel(FRAMES_HELD);
        (Self { neighbour, downstream, upstream: None, has_room: false }, frames)
    }

    pub(super) fn neighbour(&self) -> Option<PeerId> {
        self.neighbour
    }

    /// Takes frames from this link, and from an earlier one no more.
    pub(super) fn read(&mut self, link: LinkId, receiver: FrameReceiver, events: mpsc::Sender<Event>) -> Incoming {
        let (part, parting) = oneshot::channel();
        let (frames, arrived) = mpsc::channel(1);
        self.upstream = Some(Frames { arrived, _parting: part });
        Incoming { link, receiver, frames, events, parting }
    }

    /// Sends a frame. The state machine never has more of them on their way than there is room for.
    pub(super) fn send(&self, frame: Frame) {
        let sent = self.downstream.try_send((Instant::now(), frame));
        debug_assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))));
    }

    pub(super) fn set_room(&mut self, has_room: bool) {
        self.has_room = has_room;
    }
}

/// The next frame of a lane that has room for it. Cancel-safe.
pub(super) async fn next_frame(lanes: &mut BTreeMap<Turn, Lane>) -> (LinkId, Frame) {
    poll_fn(|context| {
        for lane in lanes.values_mut().filter(|lane| lane.has_room) {
            let upstream = lane.upstream.as_mut();
            if let Some(Poll::Ready(Some(arrived))) = upstream.map(|frames| frames.arrived.poll_recv(context)) {
                return Poll::Ready(arrived);
            }
        }
        Poll::Pending
    })
    .await
}

/// The own link downstream.
pub(super) struct Outgoing {
    pub(super) turn: Turn,
    pub(super) epoch: PlanEpoch,
    pub(super) downstream: Downstream,
    pub(super) endpoint: Endpoint,
    pub(super) coordinator: Connection,
    /// Frames, each with the time since which it waits.
    pub(super) frames: mpsc::Receiver<(Instant, Frame)>,
    pub(super) events: mpsc::Sender<Event>,
}

impl Outgoing {
    /// Makes the link, again if it must be as long as it has carried nothing, and sends what it is given until no more
    /// can come.
    pub(super) async fn run(mut self) {
        let turn = self.turn;
        if let Err(error) = self.serve().await {
            let _ = self.events.send(Event::OutgoingBroken { turn, text: error.to_string() }).await;
        }
    }

    async fn serve(&mut self) -> Result<(), NetError> {
        let deadline = Instant::now() + LINK_DEADLINE;
        let (connection, mut link, first) = loop {
            let error = match self.connect(deadline).await {
                Ok((connection, link)) => {
                    self.tell(Event::Outgoing { turn: self.turn }).await;
                    // That the peer admits us shows only by its not closing.
                    tokio::select! {
                        first = self.frames.recv() => break (connection, link, first),
                        error = connection.closed() => error,
                    }
                }
                Err(error) => error,
            };
            if self.frames.is_closed() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(error);
            }
            tracing::debug!(%error, "the link downstream does not stand yet");
            sleep(RETRY_INTERVAL).await;
        };
        let (mut next, mut last) = (first, StepId::default());
        while let Some((since, frame)) = next {
            link.send(&frame).await?;
            let bytes = frame.wire_bytes() as u64;
            last = frame.step;
            // The memory of a large activation goes before the next one comes.
            drop(frame);
            self.tell(Event::Sent { turn: self.turn, bytes, took: since.elapsed() }).await;
            next = tokio::select! {
                next = self.frames.recv() => next,
                error = connection.closed() => return Err(error),
            };
        }
        link.finish(last).await
    }

    async fn connect(&self, deadline: Instant) -> Result<(Connection, FrameSender), NetError> {
        let connection = match &self.downstream {
            Downstream::Coordinator => self.coordinator.clone(),
            Downstream::Worker { peer, addresses } => self.dial(*peer, addresses, deadline).await?,
        };
        let link = connection.open_frames(self.epoch).await?;
        Ok((connection, link))
    }

    async fn dial(&self, peer: PeerId, addresses: &[String], deadline: Instant) -> Result<Connection, NetError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let late = NetError::Deadline { peer, what: "a link downstream", after: LINK_DEADLINE };
        timeout(left, self.endpoint.dial(addresses, peer)).await.unwrap_or(Err(late))
    }

    async fn tell(&self, event: Event) {
        // Without a receiver the worker has left its coordinator, and this task is about to be dropped.
        let _ = self.events.send(event).await;
    }
}
