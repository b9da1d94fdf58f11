//! The link: one long-lived one-way stream of frames, in order, between two neighbours.
//!
//! It starts with `"QMS1" | plan epoch u32`.

use bytes::{BufMut, BytesMut};

use crate::{
    error::NetError,
    frame::{Frame, FrameError, FrameKind},
    head::{FixedHead, FrameHead},
    ids::{PeerId, PlanEpoch, StepId},
    limits::FIXED_HEAD_BYTES,
    stream::{Filled, Reader, Writer},
};

/// First bytes of a link.
pub(crate) const PREFACE: &[u8; 4] = b"QMS1";
/// Below control, above weights.
const PRIORITY: i32 = 5;

/// The sending end of a link.
#[derive(Debug)]
pub struct FrameSender {
    writer: Writer,
    epoch: PlanEpoch,
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct FrameReceiver {
    reader: Reader,
    epoch: PlanEpoch,
    state: State,
    only: Option<FrameKind>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Open,
    Ended,
}

impl FrameSender {
    pub(crate) async fn open(peer: PeerId, send: quinn::SendStream, epoch: PlanEpoch) -> Result<Self, NetError> {
        let mut preface = BytesMut::with_capacity(8);
        preface.put_slice(PREFACE);
        preface.put_u32_le(epoch.0);
        let mut writer = Writer::new(peer, send, PRIORITY);
        writer.write(&mut [preface.freeze()]).await?;
        Ok(Self { writer, epoch })
    }

    /// The plan the link was opened for.
    pub fn epoch(&self) -> PlanEpoch {
        self.epoch
    }

    /// Sends a frame without copying its payload; fails if the peer takes nothing for 30 s.
    ///
    /// Not cancel-safe: a dropped send leaves the link torn, and the next one fails.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), NetError> {
        let head = frame.head_bytes().map_err(|error| NetError::Unsendable { text: error.to_string() })?;
        self.writer.write(&mut [head, frame.payload.clone()]).await
    }

    /// Tells the peer that no frame follows `last`, and waits for a short time until it knows: a connection that is
    /// dropped takes unread words with it. A sender that is dropped instead looks like a failure to the peer.
    pub async fn finish(mut self, last: StepId) -> Result<(), NetError> {
        self.send(&Frame::end(self.epoch, last)).await?;
        self.writer.linger().await;
        Ok(())
    }
}

impl FrameReceiver {
    pub(crate) fn new(reader: Reader, epoch: PlanEpoch) -> Self {
        Self { reader, epoch, state: State::Open, only: None }
    }

    /// Takes frames of this kind only: another one closes the connection, before room is made for it.
    #[must_use]
    pub fn only(self, kind: FrameKind) -> Self {
        Self { only: Some(kind), ..self }
    }

    /// The plan the link was opened for.
    pub fn epoch(&self) -> PlanEpoch {
        self.epoch
    }

    /// The sending peer.
    pub fn peer(&self) -> PeerId {
        self.reader.peer()
    }

    /// The next frame; `None` when the peer said that none follows. Cancel-safe.
    ///
    /// Bytes that are not a frame close the connection. A stream that just ends is an error.
    pub async fn recv(&mut self) -> Result<Option<Frame>, NetError> {
        if self.state == State::Ended {
            return Ok(None);
        }
        self.fill(FIXED_HEAD_BYTES).await?;
        let fixed = self.reader.buffered().first_chunk().map(FixedHead::parse);
        let fixed = fixed.expect("filled above").map_err(|error| self.malformed(error))?;
        if let Some(wanted) = self.only
            && ![wanted, FrameKind::End].contains(&fixed.kind())
        {
            return Err(self.malformed(FrameError::Kind { found: fixed.kind(), wanted }));
        }
        let (head_bytes, frame_bytes) = (fixed.head_bytes(), fixed.frame_bytes());
        self.fill(head_bytes).await?;
        let head = FrameHead::parse(&self.reader.buffered()[..head_bytes]).map_err(|error| self.malformed(error))?;
        self.fill(frame_bytes).await?;
        let tail = self.reader.take(frame_bytes).slice(head_bytes..);
        let frame = head.into_frame(tail).map_err(|error| self.malformed(error))?;
        match frame.kind {
            FrameKind::Hidden | FrameKind::Tokens | FrameKind::Sampled => Ok(Some(frame)),
            FrameKind::End => {
                self.state = State::Ended;
                Ok(None)
            }
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), NetError> {
        match self.reader.fill(bytes).await? {
            Filled::Full => Ok(()),
            Filled::Ended => Err(self.reader.ended()),
        }
    }

    fn malformed(&self, source: FrameError) -> NetError {
        self.reader.malformed(NetError::Frame { peer: self.reader.peer(), source })
    }
}
