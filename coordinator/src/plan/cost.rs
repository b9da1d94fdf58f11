//! What a stage costs: memory, by the account that workers keep as well, and its share of the work.

use std::ops::Range;

use qmesh_models::{
    footprint::{Footprint, Footprints, ShardDemand},
    spec::{HeadMatrix, ModelSpec, TensorRole},
};

use super::{PlanInput, Workload};

/// The cost of every range of layers.
#[derive(Clone, Debug)]
pub(super) struct Costs<'a> {
    spec: &'a ModelSpec,
    footprints: Footprints<'a>,
    /// `weights[start][end - start - 1]` in the file: what a shard holds is the spec's business, so it is asked once per
    /// range.
    weights: Vec<Vec<u64>>,
    embedding_bytes: u64,
    /// Of the tensors in the layers before each one, what a token reads of them.
    token_bytes_before: Vec<u64>,
    /// The same, what it does not: experts that it does not go through.
    idle_bytes_before: Vec<u64>,
    kv_positions: usize,
    context: usize,
    chunk_rows: usize,
    workload: Workload,
}

impl<'a> Costs<'a> {
    pub(super) fn new(input: &PlanInput<'a>) -> Self {
        let spec = input.spec;
        let layers = spec.layers.len();
        let [mut token_bytes_before, mut idle_bytes_before] = [(); 2].map(|()| vec![0; layers + 1]);
        for tensor in &spec.tensors {
            if let TensorRole::Layer(layer, _) = tensor.role {
                let read = spec.bytes_per_token(tensor);
                token_bytes_before.iter_mut().skip(layer.0 + 1).for_each(|before| *before += read);
                idle_bytes_before.iter_mut().skip(layer.0 + 1).for_each(|before| *before += tensor.bytes - read);
            }
        }
        Self {
            spec,
            footprints: Footprints::new(spec),
            weights: (0..layers)
                .map(|start| (start + 1..=layers).map(|end| spec.shard_bytes(&(start..end))).collect())
                .collect(),
            embedding_bytes: spec.tensors.iter().filter(|t| t.role == TensorRole::Embedding).map(|t| t.bytes).sum(),
            token_bytes_before,
            idle_bytes_before,
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

    /// Bytes of weights, as often as tokens pass them: generated ones pass all but the embedding, which is a look-up where
    /// it is not the head as well, and of experts those that they go through; those of prompts pass the layers only.
    pub(super) fn work_bytes(&self, layers: &Range<usize>) -> u64 {
        let weight_bytes = self.weights[layers.start][layers.end - layers.start - 1];
        let is_last = layers.end == self.layers();
        let embedding_is_read = is_last && self.spec.head.matrix == HeadMatrix::Tied;
        let (prompts, replies) = self.workload.tokens();
        let looked_up = if layers.start == 0 && !embedding_is_read { self.embedding_bytes } else { 0 };
        (replies * (weight_bytes - looked_up - between(&self.idle_bytes_before, layers)))
            .saturating_add(prompts * between(&self.token_bytes_before, layers))
    }
}

/// What lies in `layers`, of what lies before each.
fn between(before: &[u64], layers: &Range<usize>) -> u64 {
    before[layers.end] - before[layers.start]
}

impl Workload {
    /// Tokens of prompts and generated ones, by the time that they take of layers: in a mixture more of prompts, as a stream
    /// alone does not mind how its tokens' work is cut.
    fn tokens(self) -> (u64, u64) {
        match self {
            Self::Mixed => (3, 1),
            Self::Prompts => (1, 0),
            Self::Replies => (0, 1),
        }
    }
}
