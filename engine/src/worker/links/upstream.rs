//! The task that reads frames from a link upstream.

use std::time::Duration;

use qmesh_net::{Frame, FrameReceiver};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::news::{LinkId, LinkNews};

/// How long frames of a plan that is no more are taken in: its end reaches all stages within a moment.
const PARTING_DEADLINE: Duration = Duration::from_secs(15);

/// A frame, and the link that it came on.
#[derive(Debug)]
pub(crate) struct ArrivedFrame {
    pub(crate) link: LinkId,
    pub(crate) frame: Frame,
}

/// A link from upstream.
pub(crate) struct UpstreamLink {
    pub(super) link: LinkId,
    pub(super) receiver: FrameReceiver,
    pub(super) frames: mpsc::Sender<ArrivedFrame>,
    pub(super) news: mpsc::Sender<LinkNews>,
    /// Its sender is dropped when nobody wants the frames any more.
    pub(super) parting: oneshot::Receiver<()>,
}

impl UpstreamLink {
    /// Hands on the frames until the link ends, or until nobody wants them any more.
    pub(crate) async fn run(mut self) {
        let link = self.link;
        loop {
            let frame = tokio::select! {
                _ = &mut self.parting => return self.drain().await,
                frame = self.receiver.recv() => frame,
            };
            match frame {
                Ok(Some(frame)) => tokio::select! {
                    _ = &mut self.parting => return self.drain().await,
                    sent = self.frames.send(ArrivedFrame { link, frame }) => if sent.is_err() {
                        return self.drain().await;
                    },
                },
                // Its sender has a new plan.
                Ok(None) => return,
                Err(error) => {
                    let _ = self.news.send(LinkNews::UpstreamBroken { link, text: error.to_string() }).await;
                    return;
                }
            }
        }
    }

    /// Takes what still comes: whoever sends it ends the link when it hears of the new plan, and must not find it broken.
    async fn drain(mut self) {
        let ended = async { while let Ok(Some(_)) = self.receiver.recv().await {} };
        if timeout(PARTING_DEADLINE, ended).await.is_err() {
            tracing::debug!(peer = %self.receiver.peer().short(), "a link of an old plan does not end");
        }
    }
}
