//! Packets beside QUIC on the same socket: those that open a way through a NAT, those that pass by a relay, and those by which a
//! rendezvous brings two together.
//!
//! Such a packet is `0x1f | "qm" | kind u8 | tag 16 | payload`. Every packet of QUIC has the second highest bit of its first
//! byte set (RFC 9000, 17.2 and 17.3; endpoints here do not agree to leave it out), and none of these has.

use crate::{
    codec::{Decode, Encode},
    keyfile,
};

/// Bytes before the payload.
pub(crate) const HEAD_BYTES: usize = 20;
/// What QUIC always has in the first byte of a packet.
const QUIC_BIT: u8 = 0x40;
const MARK: [u8; 3] = [0x1f, b'q', b'm'];

/// What tells who a relayed packet is from, and so where it goes. Whoever knows it may use it: it is secret and random.
#[derive(Clone, Copy, Decode, Default, Encode, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RelayTag(pub [u8; 16]);

impl RelayTag {
    /// A new one.
    pub fn random() -> Self {
        Self(keyfile::random())
    }
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Kind {
    /// To open the way out. Who gets it and is about to dial the sender learns where its packets come from.
    Knock,
    /// On its way to or from a relay. Without a payload it tells the relay where its sender is.
    Relayed,
    /// Where does this come from? To be answered by the socket that was asked.
    Question,
    /// The same, to be answered by the other socket of the endpoint.
    QuestionToOther,
    /// The answer.
    Answer,
    /// From a coordinator to its rendezvous: here it is.
    Call,
    /// From a worker to a rendezvous: where is the coordinator?
    Seek,
    /// The rendezvous's answer.
    Found,
}

/// A packet beside QUIC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Aside<'a> {
    pub(crate) kind: Kind,
    pub(crate) tag: RelayTag,
    pub(crate) payload: &'a [u8],
}

/// Whether a packet may be one of QUIC's.
pub(crate) fn is_quic(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & QUIC_BIT != 0)
}

impl<'a> Aside<'a> {
    /// The packet that these bytes are, if they are one that this version knows.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let [a, b, c, kind, tag @ ..] = *head;
        let kind = match kind {
            0 => Kind::Knock,
            1 => Kind::Relayed,
            2 => Kind::Question,
            3 => Kind::QuestionToOther,
            4 => Kind::Answer,
            5 => Kind::Call,
            6 => Kind::Seek,
            7 => Kind::Found,
            _ => return None,
        };
        ([a, b, c] == MARK).then_some(Self { kind, tag: RelayTag(tag), payload })
    }

    /// Appends its bytes.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MARK);
        out.push(match self.kind {
            Kind::Knock => 0,
            Kind::Relayed => 1,
            Kind::Question => 2,
            Kind::QuestionToOther => 3,
            Kind::Answer => 4,
            Kind::Call => 5,
            Kind::Seek => 6,
            Kind::Found => 7,
        });
        out.extend_from_slice(&self.tag.0);
        out.extend_from_slice(self.payload);
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.payload.len());
        self.write(&mut out);
        out
    }
}

impl std::fmt::Debug for RelayTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelayTag(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_bytes_never_change_and_are_never_quics() {
        let aside = Aside { kind: Kind::Relayed, tag: RelayTag([7; 16]), payload: b"opaque" };
        let bytes = aside.bytes();
        assert_eq!(bytes, [&b"\x1fqm\x01"[..], &[7; 16], b"opaque"].concat());
        assert_eq!((Aside::parse(&bytes), is_quic(&bytes)), (Some(aside), false));
        for cut in 0..HEAD_BYTES {
            assert_eq!(Aside::parse(&bytes[..cut]), None);
        }
        for other in [&b"\x1fqm\x09"[..], b"\x1fqx\x01", b"\x40qm\x01"] {
            assert_eq!(Aside::parse(&[other, &[7; 16]].concat()), None);
        }
        assert!(is_quic(&[0xc0, 0, 0, 0, 1]) && is_quic(&[0x41]) && !is_quic(&[]));
    }
}
