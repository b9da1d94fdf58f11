//! What a stage costs: memory, by the account that workers keep as well, and time, by the worker's speed.

use std::ops::Range;

use qmesh_models::{
    footprint::{Footprint, Footprints, ShardDemand},
    spec::{ModelSpec, TensorRole},
};

use super::{
    PlanInput, Workload,
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
    /// What it reads after the last one.
    head_bytes: u64,
    kv_positions: usize,
    context: usize,
    chunk_rows: usize,
    workload: Workload,
}

impl<'a> Costs<'a> {
    pub(super) fn new(input: &PlanInput<'a>) -> Self {
        let spec = input.spec;
        let layers = spec.layers.len();
        let mut token_bytes_before = vec![0; layers + 1];
        for tensor in &spec.tensors {
            if let TensorRole::Layer(layer, _) = tensor.role {
                let read = spec.bytes_per_token(tensor);
                token_bytes_before.iter_mut().skip(layer.0 + 1).for_each(|before| *before += read);
            }
        }
        Self {
            spec,
            footprints: Footprints::new(spec),
            token_bytes_before,
            head_bytes: spec.head_bytes(),
            kv_positions: input.kv_positions,
            context: input.context,
            chunk_rows: input.chunk_rows,
            workload: input.workload,
        }
    }

    /// The same model with room for another number of positions.
    pub(super) fn with_kv_positions(&self, kv_positions: usize) -> Self {
        Self { kv_positions, ..self.clone() }
    }

    pub(super) fn layers(&self) -> usize {
        self.spec.layers.len()
    }

    /// What a worker with so many threads takes of its memory for a stage.
    pub(super) fn footprint(&self, layers: &Range<usize>, threads: u32) -> Footprint {
        self.footprints.shard(&ShardDemand {
            layers: layers.clone(),
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
    pub(super) fn step_ps(&self, layers: &Range<usize>, speed: &Speed, rows: f64, positions: f64) -> f64 {
        let attended = self.spec.kv_bytes_per_position(layers) as f64 * positions * rows;
        self.layer_bytes(layers) as f64 * speed.layers(rows)
            + self.head_bytes(layers) as f64 * speed.head(rows)
            + attended * speed.layers(1.0)
    }

    /// Picoseconds of a chunk of a prompt of which no row wants a token.
    pub(super) fn chunk_ps(&self, layers: &Range<usize>, speed: &Speed, rows: f64) -> f64 {
        self.layer_bytes(layers) as f64 * speed.layers(rows)
    }

    /// A stage's times: of one token, and of the work that all stages shall be equally busy with. Generated tokens pass all
    /// that a stage holds; those of prompts pass the layers only, and several of them in the time that one takes alone.
    pub(super) fn stage_time(&self, layers: &Range<usize>, speed: &Speed) -> StageTime {
        let (prompts, replies) = self.workload.tokens();
        let token = self.step_ps(layers, speed, 1.0, 0.0);
        let prompt = self.chunk_ps(layers, speed, LONG_CHUNK) * ROWS_PER_READ / LONG_CHUNK;
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
