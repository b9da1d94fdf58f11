//! What can go wrong in a shard: each variant names the tensor, session or setting at fault.

use std::ops::Range;

use qmesh_kernels::KernelError;
use qmesh_team::NoThreads;

/// Why a shard could not be loaded, or a step not be computed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// The spec contradicts itself or asks for what no shard can compute.
    #[error("model spec: {what}")]
    Spec {
        /// The contradiction.
        what: String,
    },
    /// The layers are not a non-empty range of the model's.
    #[error("layers {}..{} are no part of a model of {count} layers", range.start, range.end)]
    Layers {
        /// The layers asked for.
        range: Range<usize>,
        /// Layers of the model.
        count: usize,
    },
    /// The shard needs a tensor that its spec does not list.
    #[error("tensor {tensor} is missing from the shard's spec")]
    MissingTensor {
        /// Its role.
        tensor: String,
    },
    /// The spec lists a tensor that no part of the shard uses.
    #[error("tensor {tensor} is left over: no part of the shard uses it")]
    LeftoverTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor's shape, type or byte length is not what its role asks for.
    #[error("tensor {tensor}: {what}")]
    TensorShape {
        /// Its name.
        tensor: String,
        /// Found against expected.
        what: String,
    },
    /// A tensor's bytes could not be had from the source.
    #[error("tensor {tensor} cannot be read: {reason}")]
    Read {
        /// Its name.
        tensor: String,
        /// What the source said.
        reason: String,
    },
    /// Memory ran out: give this worker fewer layers or fewer KV positions.
    #[error("out of memory: {needed} bytes for {tensor}; give this worker fewer layers or a smaller KV budget")]
    OutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// The tensor's name, or what else the bytes were for.
        tensor: String,
    },
    /// There is no instruction set to compute with.
    #[error(transparent)]
    Kernels(#[from] KernelError),
    /// There are no threads to compute with.
    #[error(transparent)]
    Team(#[from] NoThreads),
    /// The KV budget has no room for the session, or for more of it.
    #[error("session {session} needs {needed} KV positions, {free} are free")]
    KvFull {
        /// The session.
        session: u64,
        /// Positions asked for; pages are taken whole.
        needed: usize,
        /// Positions that no session holds.
        free: usize,
    },
    /// The session is open already.
    #[error("session {session} is open already")]
    SessionOpen {
        /// The session.
        session: u64,
    },
    /// No such session.
    #[error("session {session} is not open")]
    UnknownSession {
        /// The session.
        session: u64,
    },
    /// A session cannot begin as another one does.
    #[error("session {session} cannot begin with {positions} of the {held} positions of session {source_session}")]
    Prefix {
        /// The session.
        session: u64,
        /// The other one.
        source_session: u64,
        /// Positions asked for: whole pages, fewer than the session may have.
        positions: usize,
        /// Positions that the other one holds.
        held: usize,
    },
    /// A sampling parameter is outside its range.
    #[error("sampling parameter {name}: {what}")]
    Sampling {
        /// The field.
        name: &'static str,
        /// Found against allowed.
        what: String,
    },
    /// The step's parts do not fit each other.
    #[error("step: {what}")]
    Step {
        /// Found against expected.
        what: String,
    },
    /// The session holds fewer positions than the rows build on: send the rows from `need` on.
    #[error("session {session} holds positions up to {need} only")]
    Gap {
        /// The session.
        session: u64,
        /// First position that it does not hold.
        need: usize,
    },
    /// The session goes back farther than its layers' states can.
    #[error("session {session} cannot go back to position {position}: its states hold {settled}")]
    Settled {
        /// The session.
        session: u64,
        /// First position of the rows.
        position: usize,
        /// Positions that cannot be taken out of the states.
        settled: usize,
    },
    /// The rows reach beyond what the session was opened for.
    #[error("session {session}: position {position} is beyond its {max_positions} positions")]
    BeyondSession {
        /// The session.
        session: u64,
        /// Last position of the rows.
        position: usize,
        /// What it was opened with.
        max_positions: usize,
    },
    /// A token id is outside the vocabulary.
    #[error("session {session}: token id {id} is outside the vocabulary of {vocab}")]
    OutsideVocabulary {
        /// The session.
        session: u64,
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// The logits are not finite: the weights or the incoming activation are broken.
    #[error("session {session}: the logits at position {position} are not finite")]
    NonFinite {
        /// The session.
        session: u64,
        /// Position of the row.
        position: usize,
    },
    /// No token may follow a row.
    #[error("session {session}: no token may follow position {position}")]
    NothingAllowed {
        /// The session.
        session: u64,
        /// Position of the row.
        position: usize,
    },
    /// The tensor framework refused an operation: a defect of this program.
    #[error("tensor operation failed (please report this): {0}")]
    Tensor(String),
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.to_string())
    }
}
