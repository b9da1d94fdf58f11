//! What can go wrong on the network, named by whose fault it is.

use std::{fmt, io, net::SocketAddr, time::Duration};

use quinn::{ConnectionError, ReadError, WriteError};
use thiserror::Error;

use crate::{
    close::CloseCode, envelope::MessageError, frame::FrameError, ids::PeerId, limits::IDLE_TIMEOUT,
    message::RejectCode, plain::plain, section::SectionError,
};

/// What is said where nobody knows an address.
pub(crate) const NO_ADDRESS: &str = "no address is known";
/// TLS alert `no_application_protocol`, as QUIC carries it.
const ALPN_MISMATCH: u64 = 0x100 + 120;
/// TLS alerts with which a peer refuses our key: bad, unknown, access denied, required.
const KEY_REFUSED: [u64; 4] = [0x100 + 42, 0x100 + 46, 0x100 + 49, 0x100 + 116];

/// A failure of the network, of a peer, or of how it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// Ours: another socket has the address.
    #[error("{address} is in use by another program: stop it, or listen on another port")]
    AddressInUse {
        /// The address asked for.
        address: SocketAddr,
    },
    /// Ours: the system does not give us the address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Nobody answered at any address.
    #[error("cannot reach peer {}: {text}", peer.short())]
    Unreachable {
        /// Who was dialled.
        peer: PeerId,
        /// What happened at each address.
        text: String,
    },
    /// Somebody else answered.
    #[error("{address} answers with key {found}, not the expected {expected}: is the ticket of another mesh?")]
    WrongKey {
        /// The address dialled.
        address: SocketAddr,
        /// The pinned key.
        expected: PeerId,
        /// The key it has.
        found: PeerId,
    },
    /// The other end speaks another protocol.
    #[error("peer {} does not speak qmesh/1: run the same version on both machines", peer.short())]
    Version {
        /// The other end.
        peer: PeerId,
    },
    /// The peer does not let our key in.
    #[error("peer {} does not admit this machine's key", peer.short())]
    NotAdmitted {
        /// The other end.
        peer: PeerId,
    },
    /// The coordinator, or we as the coordinator, refused a join.
    #[error("join refused: {text}")]
    Rejected {
        /// The kind of refusal.
        code: RejectCode,
        /// One line for a person.
        text: String,
    },
    /// The peer closed the connection.
    #[error("peer {} closed the connection ({code}): {text}", peer.short())]
    Closed {
        /// The other end.
        peer: PeerId,
        /// Its reason.
        code: CloseCode,
        /// Its words.
        text: String,
    },
    /// We closed the connection.
    #[error("the connection to peer {} was closed on this side", peer.short())]
    ClosedHere {
        /// The other end.
        peer: PeerId,
    },
    /// The peer fell silent.
    #[error("lost peer {}: {text}", peer.short())]
    Lost {
        /// The other end.
        peer: PeerId,
        /// How we know.
        text: String,
    },
    /// The peer did not do its part in time.
    #[error("peer {}: {what} took more than {} s", peer.short(), after.as_secs())]
    Deadline {
        /// The other end.
        peer: PeerId,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The peer broke QUIC or TLS.
    #[error("peer {} broke the transport: {text}", peer.short())]
    Transport {
        /// The other end.
        peer: PeerId,
        /// What it did.
        text: String,
    },
    /// The peer broke our protocol.
    #[error("peer {} broke the protocol: {text}", peer.short())]
    Protocol {
        /// The other end.
        peer: PeerId,
        /// What it did.
        text: String,
    },
    /// A control message that is not one.
    #[error("peer {} sent a bad message: {source}", peer.short())]
    Message {
        /// The other end.
        peer: PeerId,
        /// What is wrong with it.
        source: MessageError,
    },
    /// A message whose reader does not know a section that must be understood.
    #[error("the {what} of peer {} cannot be taken: {source}", peer.short())]
    Section {
        /// The other end.
        peer: PeerId,
        /// Which message.
        what: &'static str,
        /// Which section.
        source: SectionError,
    },
    /// A frame that is not one.
    #[error("peer {} sent a bad frame: {source}", peer.short())]
    Frame {
        /// The other end.
        peer: PeerId,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The peer ended or reset a stream in the middle.
    #[error("peer {} ended a stream early ({code})", peer.short())]
    StreamEnded {
        /// The other end.
        peer: PeerId,
        /// Its reason.
        code: CloseCode,
    },
    /// The peer does not give us this piece of a tensor.
    #[error("peer {} refused a range: {text}", peer.short())]
    RangeRefused {
        /// The other end.
        peer: PeerId,
        /// Its reason.
        text: String,
    },
    /// The peer does not let us read what it shares.
    #[error("reading refused: {text}")]
    ReadingRefused {
        /// Its reason.
        text: String,
    },
    /// Ours: what was to be sent breaks the protocol.
    #[error("cannot send: {text}")]
    Unsendable {
        /// What is wrong with it.
        text: String,
    },
    /// Ours: TLS or the socket could not be set up.
    #[error("cannot set up the endpoint: {text}")]
    Setup {
        /// The reason.
        text: String,
    },
}

/// Where on the way to a peer something ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailureKind {
    /// Nobody said where it is.
    NotFound,
    /// It is known where it should be, and nothing comes from there.
    NotReachable,
    /// It answered, and does not want us.
    Refused,
    /// It answered, and then not in time.
    TimedOut,
    /// Something else is wrong, with it or with us.
    Other,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "not found",
            Self::NotReachable => "not reachable",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Other => "failed",
        })
    }
}

impl NetError {
    /// Where on the way to a peer it happened.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Unreachable { text, .. } if text.starts_with(NO_ADDRESS) => FailureKind::NotFound,
            Self::Unreachable { .. } => FailureKind::NotReachable,
            Self::NotAdmitted { .. } | Self::Rejected { .. } | Self::ReadingRefused { .. } => FailureKind::Refused,
            Self::Deadline { .. } | Self::Lost { .. } => FailureKind::TimedOut,
            Self::AddressInUse { .. }
            | Self::Bind { .. }
            | Self::WrongKey { .. }
            | Self::Version { .. }
            | Self::Closed { .. }
            | Self::ClosedHere { .. }
            | Self::Transport { .. }
            | Self::Protocol { .. }
            | Self::Message { .. }
            | Self::Section { .. }
            | Self::Frame { .. }
            | Self::StreamEnded { .. }
            | Self::RangeRefused { .. }
            | Self::Unsendable { .. }
            | Self::Setup { .. } => FailureKind::Other,
        }
    }

    pub(crate) fn connection(peer: PeerId, error: ConnectionError) -> Self {
        match error {
            ConnectionError::TimedOut => {
                Self::Lost { peer, text: format!("nothing heard for {} s", IDLE_TIMEOUT.as_secs()) }
            }
            ConnectionError::Reset => Self::Lost { peer, text: "it restarted".into() },
            ConnectionError::ApplicationClosed(close) => Self::Closed {
                peer,
                code: CloseCode::from_varint(close.error_code),
                text: plain(&String::from_utf8_lossy(&close.reason)),
            },
            ConnectionError::ConnectionClosed(close) => {
                Self::transport(peer, close.error_code.into(), plain(&format!("it closed with {close}")))
            }
            ConnectionError::TransportError(error) => Self::transport(peer, error.code.into(), error.to_string()),
            ConnectionError::VersionMismatch => Self::Version { peer },
            ConnectionError::LocallyClosed => Self::ClosedHere { peer },
            ConnectionError::CidsExhausted => Self::Transport { peer, text: "connection ids exhausted".into() },
        }
    }

    pub(crate) fn read(peer: PeerId, error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::StreamEnded { peer, code: CloseCode::from_varint(code) },
            ReadError::ConnectionLost(error) => Self::connection(peer, error),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Unsendable { text: format!("read on a dead stream: {error}") }
            }
        }
    }

    pub(crate) fn write(peer: PeerId, error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::StreamEnded { peer, code: CloseCode::from_varint(code) },
            WriteError::ConnectionLost(error) => Self::connection(peer, error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => {
                Self::Unsendable { text: "the stream is closed".into() }
            }
        }
    }

    fn transport(peer: PeerId, code: u64, text: String) -> Self {
        match code {
            ALPN_MISMATCH => Self::Version { peer },
            code if KEY_REFUSED.contains(&code) => Self::NotAdmitted { peer },
            _ => Self::Transport { peer, text },
        }
    }
}
