//! A QUIC stream read and written in whole units, so that dropping a read loses nothing and a torn write is noticed.

use std::{future::Future, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use tokio::time::timeout;

use crate::{close::CloseCode, error::NetError, ids::PeerId, limits::STALL_DEADLINE};

/// Memory is taken in steps of this size as bytes arrive, never for what a peer merely announces.
const STEP_BYTES: usize = 1 << 20;
/// How long to wait until a peer has taken the last words.
const LINGER: Duration = Duration::from_secs(2);

/// How a wait for bytes ended.
pub(crate) enum Filled {
    /// They are there.
    Full,
    /// The peer ended the stream before the first of them.
    Ended,
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(crate) struct Reader {
    quic: quinn::Connection,
    peer: PeerId,
    recv: RecvStream,
    buffer: BytesMut,
}

impl Reader {
    pub(crate) fn new(quic: quinn::Connection, peer: PeerId, recv: RecvStream) -> Self {
        Self { quic, peer, recv, buffer: BytesMut::new() }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Waits until `bytes` bytes are buffered. Cancel-safe: what arrived stays buffered.
    pub(crate) async fn fill(&mut self, bytes: usize) -> Result<Filled, NetError> {
        while self.buffer.len() < bytes {
            let missing = bytes - self.buffer.len();
            let chunk = self.recv.read_chunk(missing, true).await.map_err(|error| NetError::read(self.peer, error))?;
            match chunk {
                Some(chunk) => {
                    self.buffer.reserve(missing.min(STEP_BYTES));
                    self.buffer.extend_from_slice(&chunk.bytes);
                }
                None if self.buffer.is_empty() => return Ok(Filled::Ended),
                None => return Err(self.ended()),
            }
        }
        Ok(Filled::Full)
    }

    /// As `fill`, where an end is an error and so is standing still for longer than the deadline.
    pub(crate) async fn need(&mut self, bytes: usize, what: &'static str, after: Duration) -> Result<(), NetError> {
        match within(self.peer, what, after, self.fill(bytes)).await? {
            Filled::Full => Ok(()),
            Filled::Ended => Err(self.ended()),
        }
    }

    /// What is buffered.
    pub(crate) fn buffered(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes buffered bytes out.
    pub(crate) fn take(&mut self, bytes: usize) -> Bytes {
        self.buffer.split_to(bytes).freeze()
    }

    /// Reads a unit of `u32 length | bytes`, of at most `most` bytes; `None` when the stream ends before it.
    pub(crate) async fn unit(&mut self, most: usize) -> Result<Option<Bytes>, NetError> {
        let Filled::Full = self.fill(4).await? else { return Ok(None) };
        let length = self.buffer.as_ref().get_u32_le() as usize;
        if length > most {
            let text = format!("announced {length} bytes where {most} are the limit");
            return Err(self.malformed(NetError::Protocol { peer: self.peer, text }));
        }
        let Filled::Full = self.fill(4 + length).await? else { return Ok(None) };
        self.buffer.advance(4);
        Ok(Some(self.take(length)))
    }

    /// Closes the connection, since nothing after such bytes can be trusted, and hands the error on.
    pub(crate) fn malformed(&self, error: NetError) -> NetError {
        self.quic.close(CloseCode::Malformed.to_varint(), error.to_string().as_bytes());
        error
    }

    pub(crate) fn ended(&self) -> NetError {
        NetError::StreamEnded { peer: self.peer, code: CloseCode::Ok }
    }
}

/// The sending half of a stream. Dropped in the middle of a unit it resets the stream, so that the peer sees it torn.
#[derive(Debug)]
pub(crate) struct Writer {
    peer: PeerId,
    send: SendStream,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    Whole,
    Torn,
}

impl Writer {
    pub(crate) fn new(peer: PeerId, send: SendStream, priority: i32) -> Self {
        // Only a stream that is already closed refuses, and the first write reports that.
        let _ = send.set_priority(priority);
        Self { peer, send, progress: Progress::Whole }
    }

    /// Sends the chunks as one unit; the peer must take some of it every 30 s.
    ///
    /// Not cancel-safe: a dropped write leaves the stream torn and the next one fails.
    pub(crate) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), NetError> {
        if self.progress == Progress::Torn {
            return Err(NetError::Unsendable { text: "an earlier send on this stream was interrupted".into() });
        }
        self.progress = Progress::Torn;
        let (peer, mut rest) = (self.peer, chunks);
        while !rest.is_empty() {
            let some = async { self.send.write_chunks(rest).await.map_err(|error| NetError::write(peer, error)) };
            let written = within(peer, "taking what we send", STALL_DEADLINE, some).await?;
            rest = &mut rest[written.chunks..];
        }
        self.progress = Progress::Whole;
        Ok(())
    }

    /// Sends `u32 length | bytes`.
    pub(crate) async fn write_unit(&mut self, bytes: Vec<u8>) -> Result<(), NetError> {
        let length = u32::try_from(bytes.len()).map_err(|_| NetError::Unsendable { text: "unit over 4 GiB".into() })?;
        let length = Bytes::copy_from_slice(&length.to_le_bytes());
        self.write(&mut [length, bytes.into()]).await
    }

    /// Ends the stream; the peer still gets all of it.
    pub(crate) fn end(&mut self) {
        if self.progress == Progress::Whole {
            // An error means that the stream has ended already.
            let _ = self.send.finish();
        }
    }

    /// Gives the stream up; the peer's reads fail.
    pub(crate) fn reset(&mut self, code: CloseCode) {
        // An error means that the stream has ended already.
        let _ = self.send.reset(code.to_varint());
    }

    /// Ends the stream and waits, for a short time, until the peer has all of it.
    pub(crate) async fn linger(&mut self) {
        self.end();
        let _ = timeout(LINGER, self.send.stopped()).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.progress == Progress::Torn {
            self.reset(CloseCode::Internal);
        }
    }
}

/// Waits for `work`, at most so long.
pub(crate) async fn within<T>(
    peer: PeerId,
    what: &'static str,
    after: Duration,
    work: impl Future<Output = Result<T, NetError>>,
) -> Result<T, NetError> {
    timeout(after, work).await.unwrap_or(Err(NetError::Deadline { peer, what, after }))
}

/// Opens a stream: at the peer's limit of streams that takes until another one ends.
pub(crate) async fn open<T>(
    peer: PeerId,
    opening: impl Future<Output = Result<T, quinn::ConnectionError>>,
) -> Result<T, NetError> {
    let opening = async { opening.await.map_err(|error| NetError::connection(peer, error)) };
    within(peer, "a place for a new stream", STALL_DEADLINE, opening).await
}
