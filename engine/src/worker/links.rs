//! The tasks that move frames between links and the state machine, and decide nothing.

use std::time::Duration;

use qmesh_net::{
    Connection, Downstream, Endpoint, Frame, FrameReceiver, FrameSender, Incoming, NetError, PeerId, PlanEpoch, StepId,
    limits::{FIXED_HEAD_BYTES, SEGMENT_BYTES},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::event::{Event, LinkId, Turn};

/// How long a link downstream is tried for: its admission follows a message that may still be on its way.
const LINK_DEADLINE: Duration = Duration::from_secs(15);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
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
            Ok(Incoming::Frames(receiver)) => {
                if arrivals.send(receiver).await.is_err() {
                    return;
                }
            }
            Ok(Incoming::Range(server)) => {
                if let Err(error) = server.refuse("workers serve no tensors").await {
                    tracing::debug!(%error, "could not refuse a range request");
                }
            }
            Err(error) => return tracing::debug!(%error, "no more links"),
        }
    }
}

/// Hands on the frames of one link, until it ends.
pub(super) async fn read(
    link: LinkId,
    mut receiver: FrameReceiver,
    frames: mpsc::Sender<(LinkId, Frame)>,
    events: mpsc::Sender<Event>,
) {
    loop {
        match receiver.recv().await {
            Ok(Some(frame)) => {
                if frames.send((link, frame)).await.is_err() {
                    return;
                }
            }
            // Its sender has a new plan.
            Ok(None) => return,
            Err(error) => {
                let _ = events.send(Event::Broken { link, text: error.to_string() }).await;
                return;
            }
        }
    }
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
            let bytes = wire_bytes(&frame);
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

/// Bytes of a frame on the wire.
fn wire_bytes(frame: &Frame) -> u64 {
    let head = FIXED_HEAD_BYTES + frame.segments.len() * SEGMENT_BYTES + frame.ids.len() * 4;
    (head.next_multiple_of(FIXED_HEAD_BYTES) + frame.payload.len()) as u64
}
