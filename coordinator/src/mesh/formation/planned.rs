//! The model as plans need it: its shape, its tensors' hashes, and the room for sessions.

use std::{num::NonZeroUsize, ops::Range};

use qmesh_models::{
    footprint::{ShardDemand, sessions},
    spec::ModelSpec,
};

/// The model as the roster needs it.
#[derive(Debug)]
pub(crate) struct PlannedModel {
    pub(crate) name: String,
    pub(crate) id: [u8; 32],
    pub(crate) spec: ModelSpec,
    /// BLAKE3 of every tensor, in the order of `spec.tensors`.
    pub(crate) hashes: Vec<[u8; 32]>,
    /// The most positions of one session.
    pub(crate) context: usize,
    /// KV positions of all sessions together.
    pub(crate) kv_positions: usize,
    /// The most rows of one step.
    pub(crate) chunk_rows: usize,
}

impl PlannedModel {
    /// The most sessions at a time: where layers have a state of each, as many as there is room for.
    pub(crate) fn sessions_most(&self) -> usize {
        if self.spec.has_states() { sessions(self.kv_positions, self.context) } else { usize::MAX }
    }

    /// What a worker with so many threads has to find room for if it holds these layers, with so many experts of each in memory.
    pub(super) fn demand(
        &self,
        layers: Range<usize>,
        experts_in_memory: Option<NonZeroUsize>,
        threads: u32,
    ) -> ShardDemand {
        let Self { kv_positions, context, chunk_rows, .. } = *self;
        ShardDemand { layers, kv_positions, context, chunk_rows, threads: threads as usize, experts_in_memory }
    }
}
