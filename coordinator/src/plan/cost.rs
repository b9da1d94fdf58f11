//! What a stage costs: memory, by the account that workers keep as well, and time, by the worker's speed.

use std::{num::NonZeroUsize, ops::Range};

use qmesh_models::{
    footprint::{Footprint, Footprints, ShardDemand},
    spec::{ExpertsSpec, LayerSpec, ModelSpec, TensorRole},
};

use super::{
    Capacity, Experts, PlanInput, Workload,
    solver::StageTime,
    speed::{ROWS_PER_READ, Speed},
};

/// The cost of every range of layers.
#[derive(Clone, Debug)]
pub(super) struct Costs<'a> {
    spec: &'a ModelSpec,
    footprints: Footprints<'a>,
    /// Of the tensors in the layers before each one, what a token reads of them.
    token_bytes_before: Vec<u64>,
    /// Of the matrices of experts in the layers before each one.
    routed_bytes_before: Vec<u64>,
    /// What it reads after the last one.
    head_bytes: u64,
    kv_positions: usize,
    context: usize,
    chunk_rows: usize,
    workload: Workload,
    experts: Experts,
}

/// What a stage has of the model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Share {
    pub(super) layers: Range<usize>,
    /// How many of each layer's experts are in memory at a time, where not all are.
    pub(super) experts_in_memory: Option<NonZeroUsize>,
}

/// A worker has not enough memory for some layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLarge {
    /// What they need at least.
    pub(super) needed_bytes: u64,
}

impl<'a> Costs<'a> {
    pub(super) fn new(input: &PlanInput<'a>) -> Self {
        let spec = input.spec;
        let layers = spec.layers.len();
        let (mut token_bytes_before, mut routed_bytes_before) = (vec![0; layers + 1], vec![0; layers + 1]);
        for tensor in &spec.tensors {
            if let TensorRole::Layer(layer, part) = tensor.role {
                let read = spec.bytes_per_token(tensor);
                token_bytes_before.iter_mut().skip(layer.0 + 1).for_each(|before| *before += read);
                let routed = if part.is_routed() { tensor.bytes } else { 0 };
                routed_bytes_before.iter_mut().skip(layer.0 + 1).for_each(|before| *before += routed);
            }
        }
        Self {
            spec,
            footprints: Footprints::new(spec),
            token_bytes_before,
            routed_bytes_before,
            head_bytes: spec.head_bytes(),
            kv_positions: input.kv_positions,
            context: input.context,
            chunk_rows: input.chunk_rows,
            workload: input.workload,
            experts: input.experts,
        }
    }

    /// The same model with room for another number of positions.
    pub(super) fn with_kv_positions(&self, kv_positions: usize) -> Self {
        Self { kv_positions, ..self.clone() }
    }

    pub(super) fn layers(&self) -> usize {
        self.spec.layers.len()
    }

    /// The same model, with experts on disk where there is no room for them.
    pub(super) fn with_experts_on_disk(&self) -> Self {
        Self { experts: Experts::OnDisk, ..self.clone() }
    }

    /// What a worker has of these layers: all of it in memory if it can, or else as many of the experts as it has room for, and
    /// no fewer than one row uses.
    pub(super) fn share(&self, layers: Range<usize>, worker: &Capacity) -> Result<Share, TooLarge> {
        let bytes = |share: &Share| self.footprint(share, worker.threads).total_bytes();
        let all = Share { layers: layers.clone(), experts_in_memory: None };
        let needed_bytes = bytes(&all);
        if needed_bytes <= worker.memory_bytes {
            return Ok(all);
        }
        let used = self.spec.layers[layers.clone()].iter().filter_map(LayerSpec::experts).map(|experts| experts.used);
        let (Experts::OnDisk, Some(used)) = (self.experts, used.max().and_then(NonZeroUsize::new)) else {
            return Err(TooLarge { needed_bytes });
        };
        let least = Share { experts_in_memory: Some(used), ..all };
        let needed_bytes = bytes(&least);
        let free = worker.memory_bytes.checked_sub(needed_bytes).ok_or(TooLarge { needed_bytes })?;
        let more = free / self.footprints.expert_bytes(&layers).max(1);
        let experts = used.saturating_add(usize::try_from(more).unwrap_or(usize::MAX));
        // All of them do not fit, if only by what fills pages up.
        let most = NonZeroUsize::new(self.experts().saturating_sub(1)).unwrap_or(used);
        Ok(Share { experts_in_memory: Some(experts.min(most)), ..least })
    }

    /// The most experts that a layer has.
    pub(super) fn experts(&self) -> usize {
        self.spec.layers.iter().filter_map(LayerSpec::experts).map(|experts| experts.count).max().unwrap_or(0)
    }

    /// Bytes of the matrices of experts in these layers.
    pub(super) fn routed_bytes(&self, layers: &Range<usize>) -> u64 {
        self.routed_bytes_before[layers.end] - self.routed_bytes_before[layers.start]
    }

    /// What a worker with so many threads takes of its memory for a stage.
    pub(super) fn footprint(&self, share: &Share, threads: u32) -> Footprint {
        self.footprints.shard(&ShardDemand {
            layers: share.layers.clone(),
            experts_in_memory: share.experts_in_memory,
            kv_positions: self.kv_positions,
            context: self.context,
            chunk_rows: self.chunk_rows,
            threads: threads as usize,
        })
    }

    /// Bytes of the layers' weights that a token reads.
    pub(super) fn layer_bytes(&self, layers: &Range<usize>) -> u64 {
        self.token_bytes_before[layers.end] - self.token_bytes_before[layers.start]
    }

    /// Bytes that a token reads after the last layer, where that is among `layers`.
    pub(super) fn head_bytes(&self, layers: &Range<usize>) -> u64 {
        if layers.end < self.layers() { 0 } else { self.head_bytes }
    }

    /// Picoseconds of a step of `rows` rows that all want a token, `positions` into their texts.
    pub(super) fn step_ps(&self, share: &Share, speed: &Speed, rows: f64, positions: f64) -> f64 {
        let Share { layers, .. } = share;
        let attended = self.spec.attended_bytes(layers, positions as usize) as f64 * rows;
        self.layers_ps(share, speed, rows)
            + self.head_bytes(layers) as f64 * speed.head(rows)
            + attended * speed.layers(1.0)
    }

    /// Picoseconds of a chunk of a prompt, behind so many positions of it, of which no row wants a token. Among themselves the
    /// rows have met while the speed was measured.
    pub(super) fn chunk_ps(&self, share: &Share, speed: &Speed, rows: usize, before: usize) -> f64 {
        let attended = self.spec.attended_bytes(&share.layers, before) as f64 * rows as f64;
        self.layers_ps(share, speed, rows as f64) + attended * speed.attention()
    }

    /// Picoseconds of a step of `rows` rows in the layers, without attention to what came before.
    fn layers_ps(&self, share: &Share, speed: &Speed, rows: f64) -> f64 {
        self.layer_bytes(&share.layers) as f64 * speed.layers(rows) + self.disk_ps(share, speed, rows)
    }

    /// Picoseconds that a step of `rows` rows spends on experts that are not in memory: they are read and packed. Rows are taken
    /// to choose experts evenly, so that what is in memory is what they choose as often as it is much of the whole.
    fn disk_ps(&self, share: &Share, speed: &Speed, rows: f64) -> f64 {
        let experts = self.spec.layers[share.layers.clone()].iter().find_map(LayerSpec::experts);
        let (Some(in_memory), Some(&ExpertsSpec { count, used, .. })) = (share.experts_in_memory, experts) else {
            return 0.0;
        };
        let missing = 1.0 - (in_memory.get() as f64 / count as f64).min(1.0);
        let chosen = 1.0 - (1.0 - used as f64 / count as f64).powf(rows);
        self.routed_bytes(&share.layers) as f64 * missing * chosen * (speed.disk_ps_per_byte + speed.layers(1.0))
    }

    /// A stage's times: of one token, and of the work that all stages shall be equally busy with. Generated tokens pass all
    /// that a stage holds; those of prompts pass the layers only, and several of them in the time that one takes alone.
    pub(super) fn stage_time(&self, share: &Share, speed: &Speed) -> StageTime {
        let (prompts, replies) = self.workload.tokens();
        let token = self.step_ps(share, speed, 1.0, 0.0);
        let prompt = self.layers_ps(share, speed, LONG_CHUNK) * ROWS_PER_READ / LONG_CHUNK;
        StageTime { token: token.round() as u64, load: (replies * token + prompts * prompt).round() as u64 }
    }
}

impl Workload {
    /// Tokens of prompts and generated ones, by the time that they take of layers: in a mixture more of prompts, as a stream
    /// alone does not mind how its tokens' work is cut.
    fn tokens(self) -> (f64, f64) {
        match self {
            Self::Mixed => (3.0, 1.0),
            Self::Prompts => (1.0, 0.0),
            Self::Replies => (0.0, 1.0),
        }
    }
}

/// Rows of a chunk of a long prompt.
const LONG_CHUNK: f64 = 256.0;
