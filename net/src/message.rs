//! Control messages: who says what to whom. Their bytes are the business of `envelope.rs`.
//!
//! The index of an enum's variant is its number on the wire, so within a version nothing here is inserted, moved or
//! removed. The fields of `Hello`, `Welcome` and `Reject` never change at all: with them peers of different versions
//! tell each other so. What a version can do without comes in sections.

use std::ops::Range;

use crate::{
    codec::{Decode, Encode},
    grant::{Grant, Seeker},
    ids::{PeerId, PlanEpoch, SessionId, StageIndex},
    mask::Mask,
    sampling::Sampling,
    section::Sections,
};

/// What travels on a control stream.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub enum Message {
    /// Worker to coordinator, first: who asks to join, and the proof that it may.
    Hello(Hello),
    /// Coordinator to worker: it has joined.
    Welcome(Welcome),
    /// Coordinator to worker: it may not join.
    Reject {
        /// The kind of refusal.
        code: RejectCode,
        /// One line for the person at the worker.
        text: String,
    },
    /// Coordinator to worker: load these layers.
    Load(LoadShard),
    /// Worker to coordinator: how the loading goes.
    ShardStatus(ShardStatus),
    /// Coordinator to worker: where frames come from and go to.
    Route(Route),
    /// Worker to coordinator: the downstream link of this epoch stands.
    Linked {
        /// The plan's epoch.
        epoch: PlanEpoch,
        /// What only some versions say about the link.
        sections: Sections,
    },
    /// Coordinator to worker: make room for a session.
    Open(OpenSession),
    /// Worker to coordinator: the session has its room.
    Opened {
        /// The plan's epoch.
        epoch: PlanEpoch,
        /// The session opened.
        session: SessionId,
    },
    /// Worker to coordinator: no room for the session.
    Refused {
        /// The plan's epoch.
        epoch: PlanEpoch,
        /// The session refused.
        session: SessionId,
        /// Why.
        text: String,
    },
    /// Coordinator to worker: the session ended or was cancelled; free its KV.
    Close {
        /// The plan's epoch.
        epoch: PlanEpoch,
        /// The session to forget.
        session: SessionId,
    },
    /// Coordinator to worker: drop the shard of this epoch.
    Unload {
        /// The plan's epoch.
        epoch: PlanEpoch,
    },
    /// Worker to coordinator: something failed.
    Fault(Fault),
    /// Worker to coordinator: counters of a stage.
    StageReport(StageReport),
    /// Worker to coordinator: finish what runs, plan nothing more here.
    Drain,
    /// Either way: the sender is about to leave.
    Bye {
        /// Why, in one line.
        text: String,
    },
    /// Coordinator to worker: the session ended; keep its first positions for others to share, and free the rest.
    Keep {
        /// The plan's epoch.
        epoch: PlanEpoch,
        /// The session.
        session: SessionId,
        /// How many positions.
        positions: u32,
    },
    /// Coordinator to worker: find out how fast this machine computes the model.
    Measure(Measure),
    /// Worker to coordinator: what it found.
    Measured(Measured),
    /// Coordinator to the last stage: which tokens may follow a row.
    Mask(Mask),
    /// Worker to coordinator: this machine has other addresses than it had.
    Moved {
        /// Where it is now: [`crate::OwnAddresses`].
        sections: Sections,
    },
    /// A rendezvous to the coordinator: somebody asks for it.
    Sought(Seeker),
    /// Coordinator to a rendezvous: tell who asked where this coordinator is.
    Introduce(Seeker),
    /// Coordinator to a rendezvous: pass packets on.
    Grant(Grant),
    /// Coordinator to a rendezvous: pass nothing on any more for this plan.
    Revoke {
        /// The plan's epoch.
        epoch: PlanEpoch,
    },
}

impl Message {
    /// The sections of a message that has a field for them.
    pub(crate) fn sections(&self) -> Option<&Sections> {
        if let Self::Hello(Hello { sections, .. })
        | Self::Welcome(Welcome { sections, .. })
        | Self::Load(LoadShard { sections, .. })
        | Self::ShardStatus(ShardStatus { sections, .. })
        | Self::Route(Route { sections, .. })
        | Self::Measured(Measured { sections, .. })
        | Self::StageReport(StageReport { sections, .. })
        | Self::Linked { sections, .. }
        | Self::Moved { sections } = self
        {
            Some(sections)
        } else {
            None
        }
    }

    /// The place for the sections of such a message.
    pub(crate) fn sections_mut(&mut self) -> Option<&mut Sections> {
        if let Self::Hello(Hello { sections, .. })
        | Self::Welcome(Welcome { sections, .. })
        | Self::Load(LoadShard { sections, .. })
        | Self::ShardStatus(ShardStatus { sections, .. })
        | Self::Route(Route { sections, .. })
        | Self::Measured(Measured { sections, .. })
        | Self::StageReport(StageReport { sections, .. })
        | Self::Linked { sections, .. }
        | Self::Moved { sections } = self
        {
            Some(sections)
        } else {
            None
        }
    }
}

/// A worker introduces itself. The fields are frozen.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Hello {
    /// Version of the messages, [`crate::limits::PROTOCOL`].
    pub protocol: u16,
    /// Version of the program.
    pub version: String,
    /// Always 0, and not read: abilities are named in sections. It stays because the fields are frozen.
    pub features: u64,
    /// The name the worker would like to have.
    pub name: String,
    /// Operating system and architecture.
    pub os: String,
    /// What decides the bits of its results; equal strings compute equal bits.
    pub numerics: String,
    /// Memory it offers, in bytes.
    pub memory_bytes: u64,
    /// Compute threads.
    pub threads: u32,
    /// Which join secret the proof is made with.
    pub secret_id: [u8; 8],
    /// Proof that the worker holds the secret, bound to this connection.
    pub proof: [u8; 32],
    /// What only some versions say of themselves.
    pub sections: Sections,
}

/// The coordinator lets a worker in. The fields are frozen.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct Welcome {
    /// The mesh's name.
    pub mesh: String,
    /// The worker's name on this mesh, unique.
    pub assigned_name: String,
    /// What only some versions say of themselves.
    pub sections: Sections,
}

/// Why a join was refused.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum RejectCode {
    /// The two programs speak different versions, or compute different bits.
    Version,
    /// It has no right to join: the ticket's secret is not this mesh's, or no longer; or whoever runs the mesh does not want
    /// it.
    Secret,
    /// The ticket has expired.
    Expired,
    /// The hello makes no sense.
    Malformed,
    /// The mesh has no place left.
    Full,
}

/// The layers that a worker is to hold, and how much room it needs for sessions.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct LoadShard {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The stage the worker becomes.
    pub stage: StageIndex,
    /// Stages in the pipeline.
    pub stages: u16,
    /// BLAKE3 that names the model.
    pub model_id: [u8; 32],
    /// The model's name, for people.
    pub model_name: String,
    /// The model's spec as JSON.
    pub spec_json: Vec<u8>,
    /// The layers, from the first one to before the end.
    pub layers: Range<u32>,
    /// BLAKE3 of every tensor of the spec, in its order.
    pub tensor_hashes: Vec<[u8; 32]>,
    /// KV budget in positions, all sessions together.
    pub kv_positions: u32,
    /// Most positions of one session.
    pub context: u32,
    /// Most rows of a chunk of a prompt, which the worker makes its buffers for.
    pub chunk_rows: u32,
    /// What only some versions say about a plan.
    pub sections: Sections,
}

/// What a worker is to find its speed with.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Measure {
    /// The spec of a small model of the same kind, as JSON.
    pub spec_json: Vec<u8>,
}

/// How fast a worker computes.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct Measured {
    /// In increasing rows; none where it cannot be said.
    pub points: Vec<MeasuredPoint>,
    /// Why it cannot be said, in one line.
    pub text: String,
    /// What only some versions say about it.
    pub sections: Sections,
}

/// The time of steps of so many rows.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct MeasuredPoint {
    /// Rows of the step.
    pub rows: u32,
    /// Picoseconds for each KiB of the layers' weights that a token reads.
    pub layers_ps_per_kib: u64,
    /// Picoseconds for each KiB of the head.
    pub head_ps_per_kib: u64,
}

/// How far a shard has come.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct ShardStatus {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The phase it is in.
    pub phase: ShardPhase,
    /// Bytes of the phase done.
    pub bytes_done: u64,
    /// Bytes of the phase in all.
    pub bytes_total: u64,
    /// What it does, or why it failed, in one line.
    pub text: String,
    /// The process's peak memory so far, in bytes.
    pub peak_memory_bytes: u64,
    /// What only some versions say about a shard.
    pub sections: Sections,
}

/// The phases of a shard.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum ShardPhase {
    /// Tensors come over the network or from the cache.
    Fetching,
    /// Weights are repacked for the kernels.
    Loading,
    /// Frames may come.
    Ready,
    /// It will not become ready; the text says why.
    Failed,
}

/// A stage's neighbours.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Route {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The receiver's stage.
    pub stage: StageIndex,
    /// Who sends frames to it.
    pub upstream: Upstream,
    /// Who receives frames from it.
    pub downstream: Downstream,
    /// What only some versions say about the neighbours.
    pub sections: Sections,
}

/// Where a stage's frames come from.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Upstream {
    /// The coordinator, which sends token ids to stage 0.
    Coordinator,
    /// The worker of the stage before, which will dial.
    Worker(PeerId),
}

/// Where a stage's frames go.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Downstream {
    /// The coordinator, to which the last stage sends samples.
    Coordinator,
    /// The worker of the stage after.
    Worker {
        /// Its key.
        peer: PeerId,
        /// Where it can be dialled, best first.
        addresses: Vec<String>,
    },
}

/// A session wants room on a stage.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub struct OpenSession {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The session.
    pub session: SessionId,
    /// Most positions it may come to hold. No stage sets room for them aside: the coordinator sends rows for which there is room.
    pub max_positions: u32,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// What it begins with.
    pub prefix: Option<Prefix>,
}

/// The first positions of a session that is open, for another one to begin with: their keys and values are shared.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Prefix {
    /// Whose positions.
    pub session: SessionId,
    /// How many positions: those of whole pages of the KV cache.
    pub positions: u32,
}

/// Something failed on a worker.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Fault {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The session that suffers; `None` when the whole stage does.
    pub session: Option<SessionId>,
    /// The kind.
    pub code: FaultCode,
    /// What happened, in one line.
    pub text: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum FaultCode {
    /// A frame's segment starts past the session's KV; it must come again from `need`.
    Gap {
        /// The first position that is missing.
        need: u32,
    },
    /// A frame names a session that is not open here.
    UnknownSession,
    /// A session or the KV budget is full.
    Capacity,
    /// Memory could not be had.
    Memory,
    /// A frame does not fit this stage's shapes or kind.
    Frame,
    /// The result held a NaN or an infinity.
    Numerics,
    /// The link to a neighbour is lost.
    Link,
    /// A bug on this side.
    Internal,
    /// This side and who sent the frame disagree about a session's ids.
    Ids,
    /// A mask that no row waits for, or one that lets no token follow.
    Mask,
}

/// Counters of a stage since its epoch began; they only grow.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct StageReport {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The stage.
    pub stage: StageIndex,
    /// Frames computed.
    pub steps: u64,
    /// Rows computed.
    pub rows: u64,
    /// Time computing.
    pub compute_us: u64,
    /// Time from handing frames to the link until they were all in its send buffer; the wire adds half the link's RTT.
    pub hop_us: u64,
    /// Time with nothing to compute.
    pub wait_us: u64,
    /// Bytes of frames sent.
    pub bytes_sent: u64,
    /// KV positions in use now.
    pub kv_positions_used: u32,
    /// The process's peak memory, in bytes.
    pub peak_memory_bytes: u64,
    /// What only some versions say.
    pub sections: Sections,
}

/// A piece of a tensor, asked for on a stream of its own.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct RangeRequest {
    /// BLAKE3 of the whole tensor.
    pub tensor: [u8; 32],
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What comes before the bytes of a range.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum RangeReply {
    /// So many bytes follow.
    Found {
        /// At most what was asked for.
        bytes_total: u64,
    },
    /// Nothing follows.
    Refused {
        /// Why.
        text: String,
    },
}
