//! The right to read a shared model: asked for on a stream of its own, which tells the asker who else has it.
//!
//! Who asks sends `"QMA1" | u32 length | request`; who answers sends `u32 length | reply`. Then ranges of what is shared can be
//! asked for on the same connection.

use bytes::Bytes;

use crate::{
    codec::{Decode, Encode},
    connection::Connection,
    envelope::{MessageError, decode_range, encode_range},
    error::NetError,
    ids::PeerId,
    limits::{HOLDERS, JOIN_DEADLINE, OWN_ADDRESSES},
    plain::plain,
    secret::ReadSecret,
    stream::{Reader, Writer, within},
};

/// First bytes of such a stream.
pub(crate) const PREFACE: &[u8; 4] = b"QMA1";
/// As control.
const PRIORITY: i32 = 10;
/// Version of what is said here.
const VERSION: u16 = 1;
/// Most bytes of a request.
const REQUEST_BYTES: usize = 4096;
/// Most bytes of a reply.
const REPLY_BYTES: usize = 64 << 10;
/// Longest address that is taken.
const ADDRESS_BYTES: usize = 255;

/// Whether and where a machine gives others what it has of a shared model.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct Holder {
    /// Whether it gives anything.
    pub gives: bool,
    /// Addresses of its own networks, as `IP:port`; the one that its packets come from need not be among them.
    pub addresses: Vec<String>,
}

/// The right to read, and who else has what may be read.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct ReadGrant {
    /// Their keys and addresses, as `IP:port`.
    pub holders: Vec<(PeerId, Vec<String>)>,
}

/// Somebody who asks for the right to read. If it is dropped without an answer, the request fails at the peer.
#[derive(Debug)]
pub struct ReadRequest {
    peer: PeerId,
    writer: Writer,
    request: Request,
}

#[derive(Clone, Debug, Decode, Encode)]
struct Request {
    version: u16,
    secret_id: [u8; 8],
    proof: [u8; 32],
    holder: Holder,
}

#[derive(Clone, Debug, Decode, Encode)]
enum Reply {
    Granted(ReadGrant),
    Refused { text: String },
}

/// The asking side.
pub(crate) async fn ask(
    connection: &Connection,
    send: quinn::SendStream,
    mut reader: Reader,
    secret: &ReadSecret,
    me: &Holder,
) -> Result<ReadGrant, NetError> {
    let peer = connection.peer();
    let request = Request {
        version: VERSION,
        secret_id: secret.id(),
        proof: secret.proof(&connection.exporter(), connection.local_peer(), peer),
        holder: me.clone(),
    };
    let mut writer = Writer::new(peer, send, PRIORITY);
    writer.write(&mut [Bytes::from_static(PREFACE)]).await?;
    writer.write_unit(encode_range(&request).map_err(unsendable)?).await?;
    writer.end();
    let reply = within(peer, "answering who may read", JOIN_DEADLINE, reader.unit(REPLY_BYTES)).await?;
    let reply = decode_range(&reply.ok_or_else(|| reader.ended())?);
    match reply.map_err(|source| reader.malformed(NetError::Message { peer, source }))? {
        Reply::Granted(mut grant) => {
            grant.holders.truncate(HOLDERS);
            grant.holders.iter_mut().for_each(|(_, addresses)| bound(addresses));
            Ok(grant)
        }
        Reply::Refused { text } => Err(NetError::ReadingRefused { text: plain(&text) }),
    }
}

impl ReadRequest {
    pub(crate) async fn accepted(send: quinn::SendStream, mut reader: Reader) -> Result<Self, NetError> {
        let peer = reader.peer();
        let request = reader.unit(REQUEST_BYTES).await?.ok_or_else(|| reader.ended())?;
        let mut request: Request = decode_range(&request).map_err(|source| NetError::Message { peer, source })?;
        bound(&mut request.holder.addresses);
        Ok(Self { peer, writer: Writer::new(peer, send, PRIORITY), request })
    }

    /// Who asks.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Whether and where the asker gives others what it has.
    pub fn holder(&self) -> &Holder {
        &self.request.holder
    }

    /// Whether the asker proved, for this connection, that it holds the secret; if not, why it may not read.
    ///
    /// # Errors
    /// One line for the person who asks.
    pub fn judge(&self, connection: &Connection, secret: &ReadSecret) -> Result<(), &'static str> {
        let request = &self.request;
        if request.version != VERSION {
            return Err("the two programs speak different versions: install the same one on both machines");
        }
        if request.secret_id != secret.id() {
            return Err("the link was replaced, or is for something else than what is shared here: ask for a new one");
        }
        let proven = secret.verify(&request.proof, &connection.exporter(), self.peer, connection.local_peer());
        if proven { Ok(()) } else { Err("the proof of the link does not hold on this connection") }
    }

    /// Gives the right: from now on the peer has the limits of one that may be here.
    ///
    /// # Errors
    /// The link's.
    pub async fn grant(mut self, connection: &Connection, grant: ReadGrant) -> Result<(), NetError> {
        connection.trust();
        self.reply(&Reply::Granted(grant)).await?;
        self.writer.end();
        Ok(())
    }

    /// Answers that it may not read, and waits until the peer has that, or for 2 s.
    pub async fn refuse(mut self, text: &str) {
        // A peer that is gone already needs no reason.
        if self.reply(&Reply::Refused { text: text.to_owned() }).await.is_ok() {
            self.writer.linger().await;
        }
    }

    async fn reply(&mut self, reply: &Reply) -> Result<(), NetError> {
        self.writer.write_unit(encode_range(reply).map_err(unsendable)?).await
    }
}

fn unsendable(error: MessageError) -> NetError {
    NetError::Unsendable { text: error.to_string() }
}

fn bound(addresses: &mut Vec<String>) {
    addresses.retain(|address| address.len() <= ADDRESS_BYTES);
    addresses.truncate(OWN_ADDRESSES);
}
