//! Weight ranges: a piece of a tensor, asked for by its hash on a stream of its own, which yields to all other streams.
//!
//! Who asks sends `"QMR1" | u32 length | request`; who answers sends `u32 length | reply`, then the bytes.

use bytes::Bytes;

use crate::{
    close::CloseCode,
    envelope::{MessageError, decode_range, encode_range},
    error::NetError,
    ids::PeerId,
    limits::STALL_DEADLINE,
    message::{RangeReply, RangeRequest},
    plain::plain,
    stream::{Reader, Writer, within},
};

/// First bytes of a range stream.
pub(crate) const PREFACE: &[u8; 4] = b"QMR1";
/// Below control and frames.
const PRIORITY: i32 = -10;
/// Most bytes of a request or reply.
const HEAD_BYTES: usize = 4096;
/// Bytes of a piece in which a range is handed out.
const PIECE_BYTES: u64 = 256 << 10;

/// A range on its way in.
#[derive(Debug)]
pub struct RangeReader {
    reader: Reader,
    bytes_total: u64,
    bytes_left: u64,
}

/// A range that the peer asks for. If it is dropped without an answer, the request fails at the peer.
#[derive(Debug)]
pub struct RangeServer {
    peer: PeerId,
    writer: Writer,
    request: RangeRequest,
    bytes_left: u64,
}

impl RangeReader {
    pub(crate) async fn ask(
        peer: PeerId,
        send: quinn::SendStream,
        mut reader: Reader,
        request: RangeRequest,
    ) -> Result<Self, NetError> {
        let mut writer = Writer::new(peer, send, PRIORITY);
        let unsendable = |error: MessageError| NetError::Unsendable { text: error.to_string() };
        writer.write(&mut [Bytes::from_static(PREFACE)]).await?;
        writer.write_unit(encode_range(&request).map_err(unsendable)?).await?;
        writer.end();
        let reply = within(peer, "answering a range request", STALL_DEADLINE, reader.unit(HEAD_BYTES)).await?;
        let reply = decode_range(&reply.ok_or_else(|| reader.ended())?);
        match reply.map_err(|source| reader.malformed(NetError::Message { peer, source }))? {
            RangeReply::Found { bytes_total } if bytes_total <= request.bytes => {
                Ok(Self { reader, bytes_total, bytes_left: bytes_total })
            }
            RangeReply::Found { bytes_total } => {
                let text = format!("answers {bytes_total} bytes to a request for {}", request.bytes);
                Err(reader.malformed(NetError::Protocol { peer, text }))
            }
            RangeReply::Refused { text } => Err(NetError::RangeRefused { peer, text: plain(&text) }),
        }
    }

    /// Bytes in all, at most what was asked for.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// The next piece (256 KiB, the last one less), within 30 s; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, NetError> {
        let piece = self.bytes_left.min(PIECE_BYTES);
        if piece == 0 {
            return Ok(None);
        }
        self.reader.need(piece as usize, "sending a range", STALL_DEADLINE).await?;
        self.bytes_left -= piece;
        Ok(Some(self.reader.take(piece as usize)))
    }
}

impl RangeServer {
    pub(crate) async fn accepted(send: quinn::SendStream, mut reader: Reader) -> Result<Self, NetError> {
        let peer = reader.peer();
        let request = reader.unit(HEAD_BYTES).await?.ok_or_else(|| reader.ended())?;
        let request = decode_range(&request).map_err(|source| NetError::Message { peer, source })?;
        Ok(Self { peer, writer: Writer::new(peer, send, PRIORITY), request, bytes_left: 0 })
    }

    /// What is asked for.
    pub fn request(&self) -> RangeRequest {
        self.request
    }

    /// The asking peer.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Announces that so many bytes follow, at most what was asked for.
    pub async fn accept(&mut self, bytes_total: u64) -> Result<(), NetError> {
        if bytes_total > self.request.bytes {
            let text = format!("{bytes_total} bytes for a range of {}", self.request.bytes);
            return Err(NetError::Unsendable { text });
        }
        self.bytes_left = bytes_total;
        self.reply(&RangeReply::Found { bytes_total }).await
    }

    /// Sends the next bytes; waits while the peer is slow, at most 30 s.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), NetError> {
        let left = self.bytes_left.checked_sub(bytes.len() as u64);
        self.bytes_left = left.ok_or_else(|| NetError::Unsendable { text: "more bytes than announced".into() })?;
        self.writer.write(&mut [bytes]).await
    }

    /// Ends the range, after exactly the announced bytes; fewer are an error, at the peer too.
    pub fn finish(mut self) -> Result<(), NetError> {
        if self.bytes_left > 0 {
            self.writer.reset(CloseCode::Internal);
            return Err(NetError::Unsendable { text: format!("{} bytes fewer than announced", self.bytes_left) });
        }
        self.writer.end();
        Ok(())
    }

    /// Answers that there is nothing, and why.
    pub async fn refuse(mut self, text: &str) -> Result<(), NetError> {
        let text = text.chars().take(HEAD_BYTES / 8).collect();
        self.reply(&RangeReply::Refused { text }).await?;
        self.writer.end();
        Ok(())
    }

    async fn reply(&mut self, reply: &RangeReply) -> Result<(), NetError> {
        let bytes = encode_range(reply).map_err(|error| NetError::Unsendable { text: error.to_string() })?;
        self.writer.write_unit(bytes).await
    }
}
