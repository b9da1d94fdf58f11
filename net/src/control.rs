//! The control stream: messages both ways, before everything else on the connection.

use bytes::Bytes;

use crate::{
    envelope::{decode, encode},
    error::NetError,
    ids::PeerId,
    limits::MESSAGE_BYTES,
    message::Message,
    plain::with_plain_texts,
    stream::{Reader, Writer},
};

/// First bytes of a control stream.
pub(crate) const PREFACE: &[u8; 4] = b"QMC1";
/// Above frames and weights.
const PRIORITY: i32 = 10;

/// The sending half of a control stream; dropped, it ends the stream.
#[derive(Debug)]
pub struct ControlSender(Writer);

/// The receiving half of a control stream.
#[derive(Debug)]
pub struct ControlReceiver {
    reader: Reader,
    /// Most bytes of a message.
    most: usize,
}

impl ControlSender {
    pub(crate) async fn open(peer: PeerId, send: quinn::SendStream) -> Result<Self, NetError> {
        let mut sender = Self::accepted(peer, send);
        sender.0.write(&mut [Bytes::from_static(PREFACE)]).await?;
        Ok(sender)
    }

    pub(crate) fn accepted(peer: PeerId, send: quinn::SendStream) -> Self {
        Self(Writer::new(peer, send, PRIORITY))
    }

    /// Sends a message; fails if the peer takes nothing for 30 s. Not cancel-safe: after a dropped send the next fails.
    pub async fn send(&mut self, message: &Message) -> Result<(), NetError> {
        let bytes = encode(message).map_err(|error| NetError::Unsendable { text: error.to_string() })?;
        self.0.write_unit(bytes).await
    }

    #[cfg(test)]
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), NetError> {
        self.0.write_unit(bytes.to_vec()).await
    }

    /// Ends the stream and waits up to 2 s until the peer has taken everything: for last words before a close.
    pub async fn finish(mut self) {
        self.0.linger().await;
    }
}

impl ControlReceiver {
    pub(crate) fn new(reader: Reader) -> Self {
        Self { reader, most: MESSAGE_BYTES }
    }

    /// From now on takes messages of so many bytes at most.
    pub(crate) fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// The next message this version knows; optional ones it does not know are skipped. Its texts have no control
    /// characters. Cancel-safe.
    ///
    /// Bytes that are not a message close the connection. The end of the stream is an error.
    pub async fn recv(&mut self) -> Result<Message, NetError> {
        loop {
            let bytes = self.reader.unit(self.most).await?.ok_or_else(|| self.reader.ended())?;
            match decode(&bytes) {
                Ok(message) => return Ok(with_plain_texts(message)),
                Err(error) if error.is_optional() => tracing::debug!(%error, "skipped"),
                Err(source) => {
                    let peer = self.reader.peer();
                    return Err(self.reader.malformed(NetError::Message { peer, source }));
                }
            }
        }
    }
}
