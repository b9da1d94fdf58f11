//! The network of qmesh: who is at the other end, and how messages, frames and weights get there.
//!
//! An [`Endpoint`] dials or accepts a [`Connection`], authenticated both ways by Ed25519 keys. On it travel, in falling
//! priority, a control stream of [`Message`]s, one [`Frame`] stream per link and direction, and weight ranges. A worker
//! is in the mesh once [`join`] returned its `Welcome`. Nothing here looks inside an activation.
//!
//! # Who is who
//! A machine's name on a mesh is its public key ([`PeerId`]); there are no certificates and no names that could be forged or
//! expire. A [`Ticket`] tells a worker its coordinator's key and addresses, and a secret by which it proves that it may
//! join. The proof is bound to this one connection: the secret never travels, and a proof is worthless elsewhere. Neighbours in
//! a pipeline learn each other's keys from the coordinator.
//!
//! # What travels
//! Messages say what shall be or has become: join, load, route, open a session. They are few and small, and travel in order on a
//! stream of their own. Frames carry the work, one micro-batch each: a head that says whose rows these are, then the rows as
//! they lie in memory. A link is a stream of frames in one direction, for one plan; it ends with a frame that says so, so that
//! a link that stops otherwise is known to be lost. Weights are asked for by the hash of their content.
//!
//! A [`ShareLink`] gives another right: to read one model that somebody shares, with the same ranges, and no mesh.
//!
//! Every length is checked before anything is allocated for it ([`limits`] has all of them), every queue is bounded and
//! every wait has a deadline. `docs/wire.md` describes the bytes; `examples/exchange.rs` joins two ends.
//!
//! Sends are not cancel-safe, every receive is. With the feature `simulation`, which no program that is shipped has,
//! `memory::Network` runs all of it without a socket, repeatably.

mod accepted;
mod admission;
mod aside;
mod attention;
mod close;
mod code;
mod codec;
mod connection;
mod control;
mod disk;
mod door;
mod drafting;
mod endpoint;
mod envelope;
mod error;
mod found;
mod frame;
mod grant;
mod head;
mod identity;
mod ids;
mod join;
mod keyfile;
mod known;
pub mod limits;
mod link;
mod machine;
mod mask;
mod meeting;
#[cfg(any(test, feature = "simulation"))]
pub mod memory;
mod message;
mod nat;
mod origin;
mod pacer;
mod pasted;
mod plain;
mod plain_section;
mod question;
mod range;
mod reading;
mod recent;
mod relay;
mod rendezvous;
mod sampled;
mod sampling;
mod secret;
mod section;
mod share_link;
mod socket;
mod sorter;
mod sources;
mod stream;
mod sum;
mod survey;
mod ticket;
mod tls;
mod trail;
mod transport;
mod ways;

pub use admission::Admission;
pub use aside::RelayTag;
pub use attention::AttentionTime;
pub use close::CloseCode;
pub use code::JoinCode;
pub use connection::Connection;
pub use control::{ControlReceiver, ControlSender};
pub use disk::{DiskRate, ExpertRoom};
pub use drafting::{DraftAnswer, DraftOrder, ORDER_IDS, PipeError, Piped, body_bytes};
pub use endpoint::Endpoint;
pub use envelope::{MessageError, decode, encode};
pub use error::{FailureKind, NetError};
pub use found::{FoundBy, WayFound};
pub use frame::{Frame, FrameError, FrameKind, Segment, StepTimes, Wants};
pub use grant::{Grant, GrantEnd, Seeker};
pub use head::FrameHead;
pub use identity::Identity;
pub use ids::{PeerId, PeerIdError, PlanEpoch, SessionId, StageIndex, StepId};
pub use join::{Applicant, Claim, Gate, Introduction, Right, Strangers, join, welcome};
pub use keyfile::{KeyFileError, read_private, replace_private};
pub use known::{Acquaintance, KnownPeers};
pub use link::{FrameReceiver, FrameSender};
pub use machine::{MachineShare, machine_name};
pub use mask::{Mask, MaskedRows, TokenMask};
pub use meeting::Meeting;
pub use message::{
    Downstream, Fault, FaultCode, Hello, LoadShard, Measure, Measured, MeasuredPoint, Message, OpenSession, Prefix,
    RangeReply, RangeRequest, RejectCode, Route, ShardPhase, ShardStatus, StageReport, Upstream, Welcome,
};
pub use nat::Nat;
pub use origin::Origin;
pub use pacer::{BUSY_BYTES_PER_SECOND, Pacer, RateLimit};
pub use plain::is_worker_name;
pub use range::{RangeReader, RangeServer};
pub use reading::{Holder, ReadGrant, ReadRequest};
pub use recent::RecentSteps;
pub use relay::{RelayEnd, RelayGrant, RelaySecret};
pub use rendezvous::{Calling, Calls, Introduced, Introducer, Seekers};
pub use sampled::{Candidate, Sampled};
pub use sampling::{Digest, Dry, Sampling};
pub use secret::{JoinRight, JoinSecret, ReadSecret};
pub use section::{SectionError, Sections};
pub use share_link::{ShareLink, ShareLinkError};
pub use sorter::Incoming;
pub use sources::{
    SectionContentError, Stock, TensorSources, WeightAskers, WeightOrigin, WeightPeer, WeightSource, WeightSources,
};
pub use sum::RowSum;
pub use survey::Survey;
pub use ticket::{Ticket, TicketError, without_tickets};
pub use trail::{Trail, Trails};
pub use transport::SocketBuffers;
pub use ways::{LinkWay, OwnAddresses, Passage, PeerWay, PeerWays, RelayWay};

#[cfg(test)]
mod tests;
