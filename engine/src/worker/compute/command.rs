//! What the compute thread can be asked, and what it answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_net::{Fault, Frame, OpenSession, SessionId};

use super::{failure::Failure, masks::StepMasks};
use crate::{
    backend::{HeldTensors, LoadedShard},
    worker::{assignment::Assignment, turn::Turn},
};

/// What the compute thread can be asked. What is for a turn that has no shard changes nothing.
#[derive(Debug)]
pub(crate) enum Command {
    /// Compute this turn's steps with a shard.
    Activate { turn: Turn, assignment: Arc<Assignment>, shard: Box<dyn LoadedShard> },
    /// Free the turn's shard and its sessions, if there are any.
    Unload { turn: Turn },
    /// Make room for a session.
    Open { turn: Turn, open: OpenSession },
    /// Free a session, if it is there.
    Close { turn: Turn, session: SessionId },
    /// Free a session, if it is there, but for its first positions.
    Keep { turn: Turn, session: SessionId, positions: usize },
    /// Compute a frame, which has waited since it `arrived`.
    Step { turn: Turn, frame: Frame, masks: StepMasks, arrived: Instant },
}

/// What became of a command, or of a shard that is loaded on another thread. `Activate`, `Close` and `Keep` are not answered.
#[derive(Debug)]
pub(crate) enum Done {
    /// So many of the bytes that no other shard had are loaded.
    Loading { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// The shard is there.
    Loaded { turn: Turn, loaded: Loaded, took: Duration },
    /// It is not.
    NotLoaded { turn: Turn, failure: Failure },
    /// No shard of this turn is there.
    Unloaded { turn: Turn },
    /// The session has its room.
    Opened { turn: Turn, session: SessionId, kv_positions_used: u32 },
    /// It has none.
    Refused { turn: Turn, session: SessionId, text: String },
    /// A frame was computed, or not.
    Stepped(Box<Stepped>),
    /// The compute thread ended, and another one, without any shard, has taken its place.
    Ended,
}

/// A shard that was loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) shard: Box<dyn LoadedShard>,
    /// What it holds.
    pub(crate) tensors: HeldTensors,
}

/// What became of a frame.
#[derive(Debug)]
pub(crate) struct Stepped {
    pub(crate) turn: Turn,
    /// What goes on to the next stage.
    pub(crate) frame: Option<Frame>,
    /// What failed: single sessions, or the whole.
    pub(crate) faults: Vec<Fault>,
    /// Rows computed.
    pub(crate) rows: u64,
    /// Time that the step took.
    pub(crate) compute: Duration,
    /// Time without anything to do before it.
    pub(crate) waited: Duration,
    pub(crate) kv_positions_used: u32,
    /// Whether the shard survived it.
    pub(crate) shard: ShardState,
}

/// Whether there still is a shard after a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShardState {
    /// There is.
    Whole,
    /// A panic left it in an unknown state: it is gone.
    Lost,
}
