//! Takes the streams that a peer opens, reads what each begins with, and puts it where it belongs.
//!
//! A task of its own: so waiting for a stream is cancel-safe, and the streams may arrive in any order.

use bytes::Buf;
use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::{select, sync::mpsc};

use crate::{
    close::CloseCode,
    control,
    error::NetError,
    ids::{PeerId, PlanEpoch},
    limits::STALL_DEADLINE,
    link::{self, FrameReceiver},
    range::{self, RangeServer},
    reading::{self, ReadRequest},
    stream::{Filled, Reader, within},
};

/// A stream that the peer opened.
#[derive(Debug)]
pub enum Incoming {
    /// A link.
    Frames(FrameReceiver),
    /// A request for a piece of a tensor, or of a shared model.
    Range(RangeServer),
    /// A request for the right to read a shared model.
    Reading(ReadRequest),
}

pub(crate) struct Sorter {
    pub(crate) quic: quinn::Connection,
    pub(crate) peer: PeerId,
    pub(crate) control: mpsc::Sender<(SendStream, Reader)>,
    pub(crate) streams: mpsc::Sender<Incoming>,
}

impl Sorter {
    /// Runs until the connection is gone or the peer breaks the protocol, which ends the connection.
    pub(crate) async fn run(self) {
        while let Ok((send, recv)) = self.next().await {
            let mut reader = Reader::new(self.quic.clone(), self.peer, recv);
            let filled = within(self.peer, "beginning a stream", STALL_DEADLINE, reader.fill(4)).await;
            let sorted = match (filled, send) {
                (Ok(Filled::Full), Some(send)) => self.sort_two_way(send, reader).await,
                (Ok(Filled::Full), None) => self.sort_one_way(reader).await,
                // Opened and given up, say by a cancelled task: no harm done.
                (Ok(Filled::Ended) | Err(NetError::StreamEnded { .. }), _) => continue,
                (Err(error), _) => Err(reader.malformed(error)),
            };
            if let Err(error) = sorted {
                tracing::info!(peer = ?self.peer, %error, "dropped the connection");
                return;
            }
        }
    }

    async fn next(&self) -> Result<(Option<SendStream>, RecvStream), ConnectionError> {
        // In this order, not a random one, so that simulations repeat.
        select! {
            biased;
            stream = self.quic.accept_bi() => stream.map(|(send, recv)| (Some(send), recv)),
            stream = self.quic.accept_uni() => stream.map(|recv| (None, recv)),
        }
    }

    async fn sort_two_way(&self, send: SendStream, mut reader: Reader) -> Result<(), NetError> {
        let preface = reader.take(4);
        if &preface[..] == control::PREFACE {
            let taken = self.control.try_send((send, reader));
            return taken.map_err(|error| {
                let (_, reader) = error.into_inner();
                self.broken(&reader, "opened a second control stream")
            });
        }
        let accepted = async {
            if &preface[..] == range::PREFACE {
                RangeServer::accepted(send, reader).await.map(Incoming::Range)
            } else if &preface[..] == reading::PREFACE {
                ReadRequest::accepted(send, reader).await.map(Incoming::Reading)
            } else {
                Err(self.broken(&reader, "opened a stream of an unknown kind"))
            }
        };
        match within(self.peer, "asking for a range", STALL_DEADLINE, accepted).await {
            Ok(stream) => self.pass(stream).await,
            Err(NetError::StreamEnded { .. }) => {}
            Err(error) => {
                self.quic.close(CloseCode::Malformed.to_varint(), error.to_string().as_bytes());
                return Err(error);
            }
        }
        Ok(())
    }

    async fn sort_one_way(&self, mut reader: Reader) -> Result<(), NetError> {
        reader.need(8, "beginning a link", STALL_DEADLINE).await?;
        let mut preface = reader.take(8);
        if &preface.split_to(4)[..] != link::PREFACE {
            return Err(self.broken(&reader, "opened a link of an unknown kind"));
        }
        let epoch = PlanEpoch(preface.get_u32_le());
        self.pass(Incoming::Frames(FrameReceiver::new(reader, epoch))).await;
        Ok(())
    }

    /// Waits while too many streams wait to be taken: QUIC's stream limit then stops the peer.
    async fn pass(&self, stream: Incoming) {
        // The receiver goes only together with this task.
        let _ = self.streams.send(stream).await;
    }

    fn broken(&self, reader: &Reader, text: &str) -> NetError {
        reader.malformed(NetError::Protocol { peer: self.peer, text: text.into() })
    }
}
