//! The task that makes the link downstream and sends frames on it.

use std::time::Duration;

use qmesh_net::{
    Connection, Downstream, Endpoint, Frame, FrameSender, LinkWay, Meeting, NetError, Passage, PeerId, PlanEpoch,
    StepId,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::news::LinkNews;
use crate::worker::turn::Turn;

/// How long a link downstream is tried for: its admission follows a message that may still be on its way.
const LINK_DEADLINE: Duration = Duration::from_secs(15);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A frame on its way out.
#[derive(Debug)]
pub(crate) struct QueuedFrame {
    /// Since when it waits.
    pub(super) since: Instant,
    pub(super) frame: Frame,
}

/// The link to the next stage, or from the last stage to the coordinator.
pub(crate) struct DownstreamLink {
    pub(crate) turn: Turn,
    pub(crate) epoch: PlanEpoch,
    pub(crate) downstream: Downstream,
    /// This side's part where the next stage is a worker.
    pub(crate) meeting: Option<Meeting>,
    pub(crate) endpoint: Endpoint,
    pub(crate) coordinator: Connection,
    /// What is to be sent; it ends when no more can come.
    pub(crate) frames: mpsc::Receiver<QueuedFrame>,
    pub(crate) news: mpsc::Sender<LinkNews>,
}

impl DownstreamLink {
    /// Makes the link, again if it must be as long as it has carried nothing, and sends what it is given until no more
    /// can come.
    pub(crate) async fn run(mut self) {
        let turn = self.turn;
        if let Err(error) = self.serve().await {
            let _ = self.news.send(LinkNews::DownstreamBroken { turn, text: error.to_string() }).await;
        }
    }

    async fn serve(&mut self) -> Result<(), NetError> {
        let deadline = Instant::now() + LINK_DEADLINE;
        let mut earlier = None;
        let (connection, mut link, first) = loop {
            let error = match self.connect(deadline).await {
                Ok((connection, link)) => {
                    let way = self.meeting.as_ref().map(|_| way_of(&connection));
                    self.tell(LinkNews::DownstreamStands { turn: self.turn, way }).await;
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
            tracing::debug!(%error, "the link downstream does not stand yet");
            // That the time is over says less than what was wrong before.
            let error = earlier.take().unwrap_or(error);
            if Instant::now() >= deadline {
                return Err(error);
            }
            earlier = Some(error);
            sleep(RETRY_INTERVAL).await;
        };
        let (mut next, mut last) = (first, StepId::default());
        while let Some(QueuedFrame { since, frame }) = next {
            link.send(&frame).await?;
            let bytes = frame.wire_bytes() as u64;
            last = frame.step;
            // The memory of a large activation goes before the next one comes.
            drop(frame);
            self.tell(LinkNews::Sent { turn: self.turn, bytes, took: since.elapsed() }).await;
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
        let dialled = async {
            match &self.meeting {
                Some(meeting) => meeting.dial(&self.endpoint, addresses).await,
                None => self.endpoint.dial(addresses, peer).await,
            }
        };
        timeout(left, dialled).await.unwrap_or(Err(late))
    }

    async fn tell(&self, news: LinkNews) {
        // Without a receiver the worker has left its coordinator, and this task is about to be dropped.
        let _ = self.news.send(news).await;
    }
}

/// How the link came about.
fn way_of(connection: &Connection) -> LinkWay {
    let passage = if connection.is_relayed() { Passage::Relayed } else { Passage::Direct };
    LinkWay { passage, rtt_us: u64::try_from(connection.rtt().as_micros()).unwrap_or(u64::MAX) }
}
