//! What computes shards: the seam between a worker and the devices of its machine.
//!
//! A [`Backend`] is a means of computing that a worker lends: its CPU, or a device. It loads [`LoadedShard`]s, each of which
//! owns all that it needs: its weights, the keys and values of its sessions, its threads, queues and device memory. What
//! crosses the seam is rows in the host's memory: token ids or activations go in, activations, sampled tokens or sums of rows come out. The
//! unit of work is a [`Step`], the rows of several sessions together. Who implements the two traits keeps to this contract.
//!
//! # Threads
//! A backend is shared: it loads a shard on one thread while another thread computes with the shards that it loaded before.
//! A loaded shard may be handed from thread to thread, and is used by one at a time. A call returns when its work is done: a
//! step's rows are complete, and what was freed is free. What a shard does side by side within a call is its own matter. A
//! worker has two shards at most, whose steps take turns: one that serves, and one that comes up beside it.
//!
//! # Determinism
//! What becomes of a row follows from the weights, from the ids of its session up to it, from the session's sampling
//! parameters and positions, and from what the step allows to follow it. It does not depend, in a single bit, on the rows beside it, on how a prompt is cut into steps, on
//! where the layers are cut, on threads, or on what was computed before and rolled back. Two backends that name the same
//! [`numerics`](Backend::numerics) give the same bits, for they may be stages of one pipeline, or take over from each other.
//!
//! # Failures
//! An [`EngineError`] that names a session blames that session alone: the worker takes its rows out and computes the step
//! again without them. Any other error fails the whole step. Either way the shard goes on: a step that is refused leaves every
//! session as it was, and one that fails on the way leaves its sessions with the positions before the step's rows (which those
//! with a state may not be able to go on from; then they are refused). After which rows nothing can be sampled, and which cannot be
//! summed, is no failure of the step: the others' samples stand. A load that
//! fails leaves nothing behind. A panic is a bug: the shard that panicked is dropped and never called again, and every other
//! shard of the backend must go on as if nothing had happened.
//!
//! # Memory
//! Room in the cache is free when `close` or `keep` returns. A shard's cache and buffers are free when it is dropped, and a
//! tensor when the last shard and the last [`HeldTensor`] that hold it are: only then does a worker load what needs their room.
//! What a shard takes of the host's memory at most is what `qmesh_models::footprint` says, by which planners promise and
//! workers refuse.

pub mod cpu;

use std::{any::Any, collections::BTreeMap, fmt, num::NonZeroUsize, ops::Range, sync::Arc};

use qmesh_models::spec::{ModelSpec, TensorRole, TensorSpec};

use crate::{
    error::EngineError,
    sample::SamplingParameters,
    step::{Prefix, Step, StepOutput},
};

/// A means of computing. The [module](self) states the contract.
pub trait Backend: fmt::Debug + Send + Sync {
    /// What decides the bits of its results, as `qmesh_models::numerics` names it. A mesh lets in only workers that name the
    /// same. It is found by computing, so that a compiler or a device that gives other bits shows; this may take
    /// milliseconds.
    ///
    /// # Errors
    /// When nothing can be computed on this machine.
    fn numerics(&self) -> Result<String, EngineError>;

    /// Threads of the host that compute at a time. The memory that a shard takes grows with them.
    fn threads(&self) -> NonZeroUsize;

    /// Loads a shard. Each tensor is read once, and not at all where `request` has it from another shard. `progress` is told
    /// the bytes read so far, after each tensor.
    ///
    /// # Errors
    /// When the spec asks for what this backend does not compute, a tensor cannot be read, or memory runs out.
    fn load(
        &self,
        request: &ShardRequest<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn LoadedShard>, EngineError>;
}

/// A loaded range of layers with the caches of its sessions. The [module](self) states the contract.
pub trait LoadedShard: fmt::Debug + Send {
    /// Opens a session of at most `max_positions` positions. It takes room as it comes to need it.
    ///
    /// # Errors
    /// When the session is open already, a sampling parameter is out of range, or the shard has no such room.
    fn open(&mut self, session: u64, max_positions: usize, sampling: SamplingParameters) -> Result<(), EngineError>;

    /// Opens a session as [`LoadedShard::open`] does, which begins with the first positions of another one: shared or
    /// copied, as if its own rows had been computed. What becomes of the other one afterwards is nothing to it.
    ///
    /// # Errors
    /// As `open`; and when the other session is not open, or the prefix is not one that can be shared.
    fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Prefix,
    ) -> Result<(), EngineError>;

    /// Leaves a session its first `positions` only, and frees what room it has beyond them. (To roll back positions that a
    /// session goes on from, the next step's rows begin at the first one that is wrong.)
    ///
    /// # Errors
    /// When the session is not open.
    fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError>;

    /// Closes a session and frees its room.
    ///
    /// # Errors
    /// When the session is not open; nothing changes then.
    fn close(&mut self, session: u64) -> Result<(), EngineError>;

    /// Computes one step. Its rows are written over those that a session has from their first position on; where layers have
    /// a state of each session, that goes back into the session's last step, by `qmesh_models::footprint::ROLLBACK_ROWS`
    /// positions at most, or to the first one of all. A shard with the last layer answers with samples after the
    /// [`Step::wanted_rows`] and the sums of the [`Step::summed_rows`], any other one with the activation of every row.
    ///
    /// # Errors
    /// When the step does not fit the shard or one of its sessions; the module says what is left.
    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError>;

    /// Positions that open sessions hold, out of the `kv_positions` of its [`ShardRequest`]. What is shared counts
    /// once.
    fn kv_positions_used(&self) -> usize;

    /// What it holds of its tensors, for other shards of the backend to share: all of them, or those that can be shared.
    fn tensors(&self) -> HeldTensors;
}

/// A shard that is to be loaded.
pub struct ShardRequest<'a> {
    /// The whole model's shape, and at least the tensors of this shard. It comes from outside: nothing in it is trusted.
    pub spec: &'a ModelSpec,
    /// Its layers: a range of the model's that is not empty.
    pub layers: Range<usize>,
    /// Positions that all sessions together may hold.
    pub kv_positions: usize,
    /// Tensors that another shard of the same backend holds, the same as those wanted, byte for byte. They are not read.
    pub held: &'a HeldTensors,
    /// Where the bytes of the other tensors come from.
    pub read: &'a ReadTensor<'a>,
    /// Which experts are in memory.
    pub experts: ExpertsHeld<'a>,
}

/// Which of a layer's experts are in memory.
#[derive(Clone, Copy)]
pub enum ExpertsHeld<'a> {
    /// All of them.
    All,
    /// Some at a time; the others' matrices are read from their files when a row needs them.
    Some {
        /// How many of each layer's.
        each: NonZeroUsize,
        /// Opens a tensor of experts, once that its bytes have been checked.
        open: &'a OpenTensor<'a>,
    },
}

/// A tensor that stays in its file. Threads may read it side by side.
pub trait TensorFile: fmt::Debug + Send + Sync {
    /// Fills `into` with the tensor's bytes from `offset` on.
    ///
    /// # Errors
    /// When they cannot be read, or are not those any more that were there when it was opened.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), EngineError>;

    /// So many bytes from `offset` on will be read soon: the system may begin to fetch them.
    fn read_ahead(&self, _offset: u64, _bytes: u64) {}
}

/// Opens a tensor that is read in pieces, as long as the shard lives.
pub type OpenTensor<'a> = dyn Fn(&TensorSpec) -> Result<Arc<dyn TensorFile>, EngineError> + Sync + 'a;

/// Fills a slice, which is as long as the tensor, with the tensor's bytes as they are in the file. Threads may call it side
/// by side.
pub type ReadTensor<'a> = dyn Fn(&TensorSpec, &mut [u8]) -> Result<(), EngineError> + Sync + 'a;

impl fmt::Debug for ShardRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, kv_positions, held, .. } = self;
        f.debug_struct("ShardRequest")
            .field("layers", layers)
            .field("kv_positions", kv_positions)
            .field("held", &held.len())
            .finish_non_exhaustive()
    }
}

/// Tensors that shards of one backend share, by what they are in the model.
pub type HeldTensors = BTreeMap<TensorRole, HeldTensor>;

/// A tensor as a backend holds it. Only that backend knows what is inside. Clones share its memory, which lives as long as
/// the last of them, and the last shard that has it.
#[derive(Clone)]
pub struct HeldTensor(Arc<dyn Any + Send + Sync>);

impl HeldTensor {
    /// Wraps what a backend has of a tensor.
    pub fn new<T: Any + Send + Sync>(tensor: T) -> Self {
        Self(Arc::new(tensor))
    }

    /// What was wrapped, if it was a `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for HeldTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldTensor")
    }
}
