//! What a stage costs: memory, and its share of the work.

use std::ops::Range;

use qmesh_models::spec::{AttentionSpec, ExpertsSpec, Ffn, HeadMatrix, LayerSpec, ModelSpec, TensorRole};

use super::{PlanInput, Workload};

/// What a worker's process takes beside weights, KV and activations: thread stacks, QUIC buffers, allocator.
/// Measured: 3 MB, and 12 where the weights come over the network, on top of what it has when it offers its memory.
pub const PROCESS_BYTES: u64 = 16 << 20;

/// One stage's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct StageCost {
    pub(super) weight_bytes: u64,
    pub(super) kv_bytes: u64,
    pub(super) other_bytes: u64,
    /// Bytes of weights, as often as tokens pass them: generated ones pass all but the embedding, which is a look-up where
    /// it is not the head as well, and of experts those that they go through; those of prompts pass the layers only.
    pub(super) work_bytes: u64,
}

impl StageCost {
    pub(super) fn memory_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes).saturating_add(self.other_bytes)
    }
}

/// The cost of every range of layers.
#[derive(Clone, Debug)]
pub(super) struct Costs<'a> {
    spec: &'a ModelSpec,
    /// `weights[start][end - start - 1]`: what a shard holds is the spec's business, so it is asked once per range.
    weights: Vec<Vec<u64>>,
    embedding_bytes: u64,
    /// Of the tensors in the layers before each one, what a token reads of them.
    token_bytes_before: Vec<u64>,
    /// The same, what it does not: experts that it does not go through.
    idle_bytes_before: Vec<u64>,
    kv_positions: usize,
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
            weights: (0..layers)
                .map(|start| (start + 1..=layers).map(|end| spec.shard_bytes(&(start..end))).collect())
                .collect(),
            embedding_bytes: spec.tensors.iter().filter(|t| t.role == TensorRole::Embedding).map(|t| t.bytes).sum(),
            token_bytes_before,
            idle_bytes_before,
            kv_positions: input.kv_positions,
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

    pub(super) fn stage(&self, layers: &Range<usize>) -> StageCost {
        let weight_bytes = self.weights[layers.start][layers.end - layers.start - 1];
        let is_last = layers.end == self.layers();
        let embedding_is_read = is_last && self.spec.head.matrix == HeadMatrix::Tied;
        let (prompts, replies) = self.workload.tokens();
        let looked_up = if layers.start == 0 && !embedding_is_read { self.embedding_bytes } else { 0 };
        StageCost {
            weight_bytes,
            kv_bytes: self.spec.kv_bytes_per_position(layers).saturating_mul(self.kv_positions as u64),
            other_bytes: PROCESS_BYTES.saturating_add(self.activation_bytes(layers, is_last)),
            work_bytes: (replies * (weight_bytes - looked_up - between(&self.idle_bytes_before, layers)))
                .saturating_add(prompts * between(&self.token_bytes_before, layers)),
        }
    }

    /// Buffers of one step at f32: the widest layer's, the frames that wait on either side, and the head's logits.
    fn activation_bytes(&self, layers: &Range<usize>, is_last: bool) -> u64 {
        let hidden = self.spec.hidden;
        let widest =
            self.spec.layers[layers.clone()].iter().map(|layer| row_elements(hidden, layer)).max().unwrap_or(0);
        let rows = self.chunk_rows.saturating_mul(widest.saturating_add(FRAMES_WAITING * hidden));
        let logits = if is_last { self.chunk_rows.min(LOGIT_ROWS).saturating_mul(self.spec.vocab) } else { 0 };
        (rows.saturating_add(logits) as u64).saturating_mul(4)
    }
}

/// What lies in `layers`, of what lies before each.
fn between(before: &[u64], layers: &Range<usize>) -> u64 {
    before[layers.end] - before[layers.start]
}

/// Elements that a row takes in a layer: the residual before and after and the normed row; q, k, v and their result, or
/// gate, up and their product, and of each expert its input and its output beside. Attention itself works page by page and
/// takes next to nothing.
fn row_elements(hidden: usize, layer: &LayerSpec) -> usize {
    let AttentionSpec { heads, kv_heads, head_dim, .. } = layer.attention;
    let attention = (2 * heads + 2 * kv_heads) * head_dim;
    let ffn = match layer.ffn {
        Ffn::Gated { inner, .. } => 3 * inner,
        Ffn::Plain { inner, .. } => 2 * inner,
        Ffn::Experts(ExpertsSpec { used, inner, shared, .. }) => {
            used * (3 * inner + 2 * hidden) + shared.map_or(0, |inner| 3 * inner + 2 * hidden)
        }
    };
    3 * hidden + attention.max(ffn)
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

/// Two frames may wait to be computed and two to be sent.
const FRAMES_WAITING: usize = 4;
/// Rows whose logits a worker holds at the same time.
const LOGIT_ROWS: usize = 32;
