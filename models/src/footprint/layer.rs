//! One layer's part of the account: its cache, and what a row of a step takes in it.

use super::{
    FLOAT, LANES, PAGE_POSITIONS, QUERIES_LEAST, QUERIES_TOGETHER, ROLLBACK_ROWS, TASKS_PER_THREAD, TensorFootprint,
    allocated, product, quantized, sum,
};
use crate::spec::{
    AttentionSpec, ExpertsSpec, Ffn, GatedDeltaSpec, LayerIndex, LayerTensor, Mixer, ModelSpec, QkNorm, StateSpaceSpec,
    TensorRole,
};

/// What a layer takes, in bytes.
#[derive(Clone, Debug)]
pub(super) struct LayerFootprint {
    /// What its tensors take.
    pub(super) tensors: TensorFootprint,
    /// Its part of a page of the KV cache.
    pub(super) page_bytes: u64,
    /// What it has of each session.
    pub(super) session_bytes: u64,
    /// What a row has in memory at most while it passes the layer, beside the layer's input.
    pub(super) row_bytes: u64,
    /// What a thread works in while it attends.
    pub(super) thread_bytes: u64,
    /// What queries that few tasks share gather from a page of one session.
    part_bytes: u64,
    kv_heads: usize,
}

impl LayerFootprint {
    /// What the spec's layer `index` takes, but for its tensors.
    pub(super) fn new(spec: &ModelSpec, index: usize) -> Self {
        let layer = &spec.layers[index];
        let inputs = Inputs::of_layer(spec, LayerIndex(index));
        match &layer.mixer {
            Mixer::Attention(attention) => Self::attention(attention, &layer.ffn, spec.hidden, &inputs),
            Mixer::GatedDelta(delta) => Self::gated_delta(delta, &layer.ffn, spec.hidden, &inputs),
            Mixer::StateSpace(space) => Self::state_space(space, &layer.ffn, spec.hidden, &inputs),
        }
    }

    fn attention(attention: &AttentionSpec, ffn: &Ffn, hidden: usize, inputs: &Inputs) -> Self {
        let AttentionSpec { heads, kv_heads, head_dim, qk_norm, .. } = *attention;
        let (q, kv) = (product([FLOAT, heads, head_dim]), product([FLOAT, kv_heads, head_dim]));
        let row = product([FLOAT, hidden]);
        let qkv = sum([product([FLOAT, attention.query_outputs()]), kv, kv]);
        let copies = if qk_norm == QkNorm::AllHeads { 2 } else { 1 };
        // In the order of time: what enters the products and what comes out of them; attention's tasks and result; its
        // result with the layer's output so far; the same with the other half.
        let projecting = sum([inputs.attention.bytes(hidden), qkv.saturating_mul(copies)]);
        let attending = sum([qkv, q, product([TASK_BYTES, kv_heads])]);
        let output = sum([q, inputs.output.bytes(heads.saturating_mul(head_dim)), row]);
        let ffn = sum([q, row, ffn_bytes(ffn, hidden, inputs)]);

        let vectors = head_dim.div_ceil(LANES);
        let padded = vectors.saturating_mul(LANES);
        let group = heads / kv_heads.max(1);
        let gathered = |queries: usize| product([queries, FLOAT, padded.saturating_add(2 * LANES)]);
        let most = QUERIES_TOGETHER.max(group);
        let scores = product([most, FLOAT, PAGE_POSITIONS + LANES]);
        let widened = product([FLOAT, PAGE_POSITIONS, head_dim.saturating_add(padded)]);
        Self {
            tensors: TensorFootprint::default(),
            page_bytes: product([2, kv_heads, PAGE_POSITIONS, head_dim.saturating_add(padded)]),
            session_bytes: 0,
            row_bytes: projecting.max(attending).max(output).max(ffn),
            thread_bytes: sum([product([most, FLOAT, head_dim]), gathered(most), scores, widened]),
            part_bytes: gathered(group.max(QUERIES_LEAST)),
            kv_heads,
        }
    }

    fn gated_delta(delta: &GatedDeltaSpec, ffn: &Ffn, hidden: usize, inputs: &Inputs) -> Self {
        let shape = StateShape {
            heads: delta.value_heads,
            keys: delta.head_dim,
            values: delta.head_dim,
            row_len: delta.row_len(),
            taps: delta.taps,
        };
        Self::with_states(shape, ffn, hidden, inputs)
    }

    fn state_space(space: &StateSpaceSpec, ffn: &Ffn, hidden: usize, inputs: &Inputs) -> Self {
        let shape = StateShape {
            heads: space.heads,
            keys: space.state_size,
            values: space.head_dim,
            row_len: space.row_len(),
            taps: space.taps,
        };
        Self::with_states(shape, ffn, hidden, inputs)
    }

    fn with_states(shape: StateShape, ffn: &Ffn, hidden: usize, inputs: &Inputs) -> Self {
        let StateShape { heads, keys, values, row_len, taps } = shape;
        let (elements, head) = (heads.saturating_mul(values), product([FLOAT, keys, values]));
        let vectors = product([FLOAT, HEAD_VECTORS, keys.saturating_add(values)]);
        let (values, row) = (product([FLOAT, elements]), product([FLOAT, hidden]));
        let projected = sum([product([FLOAT, row_len]), values]);
        // In the order of time, as above: the products; the heads' tasks and what comes of them; the layer's output; the other
        // half.
        let projecting = sum([inputs.attention.bytes(hidden), projected]);
        let mixing = sum([projected, values, product([TASK_BYTES, heads])]);
        let output = sum([values, inputs.output.bytes(elements), row]);
        let ffn = sum([values, row, ffn_bytes(ffn, hidden, inputs)]);
        let rows = taps.saturating_add(ROLLBACK_ROWS - 1);
        Self {
            tensors: TensorFootprint::default(),
            page_bytes: 0,
            session_bytes: sum([
                allocated(product([heads]).saturating_mul(head)),
                allocated(product([FLOAT, rows, row_len])),
            ]),
            row_bytes: projecting.max(mixing).max(output).max(ffn),
            // A head's state with rows that may yet be taken back, and a row's vectors.
            thread_bytes: sum([head, vectors]),
            part_bytes: 0,
            kv_heads: 0,
        }
    }

    /// What threads gather from each page on its own, where there are so few rows that they share a session's pages.
    pub(super) fn parts_bytes(&self, rows: usize, context: usize, threads: usize) -> u64 {
        if threads == 1 {
            return 0;
        }
        let sessions = threads.saturating_mul(TASKS_PER_THREAD).div_ceil(self.kv_heads.max(1)).min(rows);
        product([sessions, self.kv_heads, context.div_ceil(PAGE_POSITIONS)]).saturating_mul(self.part_bytes)
    }
}

/// What tells how much a layer with states takes.
#[derive(Clone, Copy, Debug)]
struct StateShape {
    heads: usize,
    /// Rows and columns of a head's state.
    keys: usize,
    values: usize,
    /// Elements of a row that are held.
    row_len: usize,
    taps: usize,
}

/// How products take their inputs: as floats, quantised, or (where matrices differ) both.
#[derive(Clone, Copy, Debug, Default)]
struct Input {
    floats: bool,
    blocks: bool,
}

impl Input {
    fn bytes(self, elements: usize) -> u64 {
        let floats = if self.floats { product([FLOAT, elements]) } else { 0 };
        let blocks = if self.blocks { quantized(elements) } else { 0 };
        sum([floats, blocks])
    }
}

/// The inputs of a layer's products.
#[derive(Debug, Default)]
struct Inputs {
    attention: Input,
    output: Input,
    ffn: Input,
    down: Input,
}

impl Inputs {
    fn of_layer(spec: &ModelSpec, layer: LayerIndex) -> Self {
        use LayerTensor::{
            Alpha, AttnOutput, Beta, BetaAlpha, DeltaQkv, Down, ExpertDowns, ExpertGates, ExpertUps, Gate, K, Q,
            Router, SharedDown, SharedGate, SharedRouter, SharedUp, StateGate, StateInput, StateOutput, TimeStep, Up,
            V,
        };
        let mut inputs = Self::default();
        for tensor in &spec.tensors {
            let TensorRole::Layer(of, part) = tensor.role else { continue };
            let input = if matches!(
                part,
                Q | K | V | DeltaQkv | StateGate | Alpha | Beta | BetaAlpha | StateInput | TimeStep
            ) {
                &mut inputs.attention
            } else if matches!(part, AttnOutput | StateOutput) {
                &mut inputs.output
            } else if matches!(
                part,
                Gate | Up | Router | ExpertGates | ExpertUps | SharedRouter | SharedGate | SharedUp
            ) {
                &mut inputs.ffn
            } else if matches!(part, Down | ExpertDowns | SharedDown) {
                &mut inputs.down
            } else {
                continue;
            };
            if of == layer {
                *if tensor.dtype.block_len() > 1 { &mut input.blocks } else { &mut input.floats } = true;
            }
        }
        inputs
    }
}

/// What a row takes in the feed-forward half: its input, what is between the products, and what comes out.
fn ffn_bytes(ffn: &Ffn, hidden: usize, inputs: &Inputs) -> u64 {
    let row = product([FLOAT, hidden]);
    match *ffn {
        Ffn::Gated { inner, .. } | Ffn::Plain { inner, .. } => {
            let inner = inputs.down.bytes(inner);
            sum([inputs.ffn.bytes(hidden), inner]).max(sum([inner, row]))
        }
        Ffn::Experts(ExpertsSpec { count, used, inner, shared, .. }) => {
            let experts = used.saturating_add(usize::from(shared.is_some()));
            let input = inputs.ffn.bytes(hidden);
            // Rows are gathered by expert, so that each is there as often as it has experts.
            let gathered = product([experts]).saturating_mul(sum([input, row, product([TASK_BYTES])]));
            let between = product([used]).saturating_mul(inputs.down.bytes(inner));
            let shared = shared.map_or(0, |inner| inputs.down.bytes(inner));
            sum([input, product([FLOAT, count]), gathered, between, shared, row])
        }
    }
}

/// Bytes that list a row in one task: a slice, a place in a list.
const TASK_BYTES: usize = 32;
/// Vectors that a thread has of a row in one head: as long as a key, and as long as a value.
const HEAD_VECTORS: usize = 3;
