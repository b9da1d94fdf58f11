//! The part of the account that a layer's first half has: what rows, threads and pages take while rows are mixed.

use super::{
    FLOAT, LANES, LATENT_GROUP_LEAST, PAGE_POSITIONS, QUERIES_LEAST, QUERIES_TOGETHER, ROLLBACK_ROWS, TASKS_PER_THREAD,
    allocated,
    layer::{Inputs, TASK_BYTES},
    product, sum,
};
use crate::{
    spec::{
        AttentionSpec, BlockIndexerSpec, DeltaGates, DeltaOutputGate, GatedDeltaSpec, IndexerSpec, LatentQueries,
        LatentSpec, Mixer, QkNorm, StateSpaceSpec,
    },
    tensor::TensorType,
};

/// What the first half of a layer takes, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MixerFootprint {
    /// Its part of a page of the KV cache.
    pub(super) page_bytes: u64,
    /// What it has of each session.
    pub(super) session_bytes: u64,
    /// What a row has in memory at most, beside the layer's input.
    pub(super) row_bytes: u64,
    /// What a row has once it is mixed, until the layer's end.
    pub(super) mixed_bytes: u64,
    /// What a thread works in.
    pub(super) thread_bytes: u64,
    /// What the queries of a session gather from one of its pages, where pages are cut into runs.
    pub(super) part_bytes: u64,
    /// What a thread has of each position of a session while positions are chosen.
    pub(super) position_bytes: u64,
    cut: PagesCut,
}

/// When the pages of a session are cut into runs.
#[derive(Clone, Copy, Debug)]
enum PagesCut {
    /// While there are fewer tasks, KV heads of rows, than threads have at least.
    BelowTasks { kv_heads: usize },
    /// While there are fewer groups of heads of rows than threads.
    BelowThreads { groups: usize },
    /// Never: there are none.
    Never,
}

impl MixerFootprint {
    /// Nothing at all.
    const NONE: Self = Self {
        page_bytes: 0,
        session_bytes: 0,
        row_bytes: 0,
        mixed_bytes: 0,
        thread_bytes: 0,
        part_bytes: 0,
        position_bytes: 0,
        cut: PagesCut::Never,
    };

    /// What `mixer` takes in a model of this width.
    pub(super) fn new(mixer: &Mixer, hidden: usize, inputs: &Inputs) -> Self {
        match mixer {
            Mixer::Attention(attention) => Self::of_attention(attention, hidden, inputs),
            Mixer::Latent(latent) => Self::of_latent(latent, hidden, inputs),
            Mixer::GatedDelta(delta) => Self::of_gated_delta(delta, hidden, inputs),
            Mixer::StateSpace(space) => Self::of_state_space(space, hidden, inputs),
            Mixer::None => Self::NONE,
        }
    }

    /// The most sessions of a step whose pages are cut into runs.
    pub(super) fn sessions_apart(&self, threads: usize) -> usize {
        match self.cut {
            PagesCut::BelowTasks { kv_heads } => threads.saturating_mul(TASKS_PER_THREAD).div_ceil(kv_heads.max(1)),
            PagesCut::BelowThreads { groups } => threads.saturating_sub(1) / groups.max(1),
            PagesCut::Never => 0,
        }
    }

    fn of_attention(spec: &AttentionSpec, hidden: usize, inputs: &Inputs) -> Self {
        let AttentionSpec { heads, kv_heads, head_dim, qk_norm, .. } = *spec;
        let own = spec.own_kv_heads();
        let blocks = spec.blocks.as_ref();
        let of_indexer = product([FLOAT, blocks.map_or(0, |indexer| indexer.row_len(kv_heads))]);
        let (q, kv) = (product([FLOAT, heads, head_dim]), product([FLOAT, own, head_dim]));
        let qkv = sum([product([FLOAT, spec.query_outputs().saturating_add(spec.head_gates())]), kv, kv, of_indexer]);
        let copies = if qk_norm == QkNorm::AllHeads { 2 } else { 1 };
        // In the order of time: what enters the products and what comes out of them; attention's tasks and result; its
        // result with the layer's output so far.
        let projecting = sum([inputs.attention.bytes(hidden), qkv.saturating_mul(copies)]);
        let attending = sum([qkv, q, product([TASK_BYTES, kv_heads])]);
        let output = sum([q, inputs.output.bytes(heads.saturating_mul(head_dim)), product([FLOAT, hidden])]);

        let group = heads / kv_heads.max(1);
        let queries = Queries { most: QUERIES_TOGETHER.max(group), key_dim: head_dim, value_dim: head_dim };
        let page_row = head_dim.saturating_add(filled(head_dim));
        let widened = product([FLOAT, PAGE_POSITIONS, page_row]);
        // The pages that the chosen blocks of a row are gathered in where they are not whole pages themselves.
        let copied = blocks.filter(|indexer| !indexer.block.is_multiple_of(PAGE_POSITIONS));
        let gathered =
            copied.map_or(0, |indexer| product([2, indexer.seen_whole().saturating_add(PAGE_POSITIONS), page_row]));
        let index_keys = product([2, PAGE_POSITIONS, blocks.map_or(0, |indexer| indexer.head_dim)]);
        Self {
            page_bytes: sum([product([2, own, PAGE_POSITIONS, page_row]), index_keys]),
            session_bytes: 0,
            // The indexer's queries are copied to be rotated.
            row_bytes: sum([projecting.max(attending).max(output), of_indexer]),
            mixed_bytes: q,
            thread_bytes: sum([queries.bytes(), widened, gathered]),
            part_bytes: product([kv_heads]).saturating_mul(queries.gathered(group.max(QUERIES_LEAST))),
            position_bytes: blocks.map_or(0, |indexer| scored_bytes(indexer, kv_heads)),
            cut: PagesCut::BelowTasks { kv_heads },
        }
    }

    fn of_latent(spec: &LatentSpec, hidden: usize, inputs: &Inputs) -> Self {
        let LatentSpec { heads, queries, latent_dim, plain_dim, value_dim, .. } = *spec;
        let of_heads = |dim: usize| product([FLOAT, heads, dim]);
        let each_head = |bytes: u64| product([heads]).saturating_mul(bytes);
        let (query, absorbed, attended) = (of_heads(spec.query_dim()), of_heads(spec.key_dim()), of_heads(latent_dim));
        let (first, from_latent) = match queries {
            LatentQueries::Direct => (query, 0),
            LatentQueries::Latent(rank) => (product([FLOAT, rank]), sum([inputs.queries.bytes(rank), query])),
        };
        let index = spec.indexer();
        let projected = spec.key_dim().saturating_add(index.map_or(0, IndexerSpec::row_len));
        let projected = sum([first, product([FLOAT, projected])]);
        // What an indexer has of a row: its queries and weights, what these are made of, and the positions that it chooses.
        let chosen = index.map_or(0, |indexer| {
            let of_heads = product([2, FLOAT, indexer.queries().saturating_add(indexer.heads)]);
            sum([
                first,
                inputs.queries.bytes(query_latent_dim(queries)),
                of_heads,
                product([CHOSEN_BYTES, indexer.used]),
            ])
        });
        // In the order of time: what enters the products and what comes out of them; the queries, taken out of it, and made
        // of their latent; each head's product; attention's tasks and result; the values; and these with the layer's
        // output so far.
        let projecting = sum([inputs.attention.bytes(hidden), projected]);
        let querying = sum([first, projected.max(from_latent)]);
        let absorbing = sum([query, each_head(inputs.keys.bytes(plain_dim)), absorbed]);
        let attending = sum([query, absorbed, attended, product([TASK_BYTES, heads])]);
        let values = of_heads(value_dim);
        let valuing = sum([attended, each_head(inputs.values.bytes(latent_dim)), values]);
        let all_values = heads.saturating_mul(value_dim);
        let output = sum([attended, values, inputs.output.bytes(all_values), product([FLOAT, hidden])]);

        let most = QUERIES_TOGETHER.max(heads);
        let queries = Queries { most, key_dim: spec.key_dim(), value_dim: latent_dim };
        let stripe = product([FLOAT, PAGE_POSITIONS, 4, LANES]);
        let page = filled(spec.key_dim()).saturating_add(index.map_or(0, |indexer| indexer.head_dim));
        // The pages that the chosen positions of a row are gathered in.
        let gathered = index.map_or(0, |indexer| {
            product([2, indexer.used.div_ceil(PAGE_POSITIONS), PAGE_POSITIONS, filled(spec.key_dim())])
        });
        let row_bytes = [projecting, querying, absorbing, attending, valuing, output].into_iter().max().unwrap_or(0);
        Self {
            page_bytes: product([2, PAGE_POSITIONS, page]),
            session_bytes: 0,
            row_bytes: sum([row_bytes, chosen]),
            mixed_bytes: attended,
            thread_bytes: sum([queries.bytes(), stripe, gathered]),
            part_bytes: if index.is_some() { 0 } else { queries.gathered(heads) },
            position_bytes: if index.is_some() { product([SCORED_BYTES]) } else { 0 },
            cut: PagesCut::BelowThreads { groups: head_groups(heads, usize::MAX) },
        }
    }

    fn of_gated_delta(spec: &GatedDeltaSpec, hidden: usize, inputs: &Inputs) -> Self {
        let shape = StateShape {
            heads: spec.value_heads,
            keys: spec.head_dim,
            values: spec.head_dim,
            row_len: spec.row_len(),
            taps: spec.taps,
        };
        let of = Self::with_states(shape, hidden, inputs);
        // What passes through narrow products is there beside what is made of it, and all is put together once more.
        let narrow = match (spec.gates, spec.output_gate) {
            (DeltaGates::EachElement(first), DeltaOutputGate::SigmoidNarrow(second)) => first.saturating_add(second),
            (DeltaGates::EachElement(rank), DeltaOutputGate::Silu) => rank,
            (DeltaGates::Apart | DeltaGates::Together, DeltaOutputGate::SigmoidNarrow(rank)) => rank,
            (DeltaGates::Apart | DeltaGates::Together, DeltaOutputGate::Silu) => return of,
        };
        let projected = product([FLOAT, spec.row_len().saturating_add(spec.values())]);
        let narrow = sum([product([2, FLOAT, narrow]), inputs.narrow.bytes(narrow), projected]);
        Self { row_bytes: sum([of.row_bytes, narrow]), ..of }
    }

    fn of_state_space(spec: &StateSpaceSpec, hidden: usize, inputs: &Inputs) -> Self {
        let shape = StateShape {
            heads: spec.heads,
            keys: spec.state_size,
            values: spec.head_dim,
            row_len: spec.row_len(),
            taps: spec.taps,
        };
        Self::with_states(shape, hidden, inputs)
    }

    fn with_states(shape: StateShape, hidden: usize, inputs: &Inputs) -> Self {
        let StateShape { heads, keys, values, row_len, taps } = shape;
        let (elements, head) = (heads.saturating_mul(values), product([FLOAT, keys, values]));
        let vectors = product([FLOAT, HEAD_VECTORS, keys.saturating_add(values)]);
        let values = product([FLOAT, elements]);
        let projected = sum([product([FLOAT, row_len]), values]);
        // In the order of time: the products; the heads' tasks and what comes of them; the layer's output so far.
        let projecting = sum([inputs.attention.bytes(hidden), projected]);
        let mixing = sum([projected, values, product([TASK_BYTES, heads])]);
        let output = sum([values, inputs.output.bytes(elements), product([FLOAT, hidden])]);
        let rows = taps.saturating_add(ROLLBACK_ROWS - 1);
        let last_rows = product([FLOAT, rows, row_len]);
        Self {
            page_bytes: 0,
            session_bytes: sum([allocated(product([heads]).saturating_mul(head)), allocated(last_rows)]),
            row_bytes: projecting.max(mixing).max(output),
            mixed_bytes: values,
            // A head's state with rows that may yet be taken back, and a row's vectors.
            thread_bytes: sum([head, vectors]),
            part_bytes: 0,
            position_bytes: 0,
            cut: PagesCut::Never,
        }
    }
}

/// Bytes that a thread has of a position while blocks are chosen for so many KV heads: a part of its block's scores, of what one
/// head's are ordered by, and of what is chosen.
fn scored_bytes(indexer: &BlockIndexerSpec, kv_heads: usize) -> u64 {
    let of_block = sum([product([FLOAT, kv_heads]), product([SCORED_BYTES + CHOSEN_BYTES])]);
    of_block.div_ceil(indexer.block.max(1) as u64)
}

/// Elements of the latent that queries are made of, where they are.
fn query_latent_dim(queries: LatentQueries) -> usize {
    match queries {
        LatentQueries::Direct => 0,
        LatentQueries::Latent(rank) => rank,
    }
}

/// Bytes of a position that was chosen, and of one that is scored: the score, and what it is ordered by.
const CHOSEN_BYTES: usize = 4;
const SCORED_BYTES: usize = 4 + 8;

/// Vectors that a thread has of a row in one head: as long as a key, and as long as a value.
const HEAD_VECTORS: usize = 3;

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

/// Bytes of the matrices that are made of others when these are loaded: those that latent attention multiplies queries by,
/// where the file holds what makes keys.
pub(super) fn made_bytes(mixer: &Mixer, inputs: &Inputs) -> u64 {
    match (mixer, inputs.joined) {
        (Mixer::Latent(LatentSpec { heads, latent_dim, plain_dim, .. }), Some(dtype)) => {
            let element = turned_type(dtype).block_bytes();
            product([*heads, filled(*latent_dim), *plain_dim, element])
        }
        (Mixer::Latent(_) | Mixer::Attention(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None, _) => 0,
    }
}

/// How a matrix is held that was turned: floats stay what they are, blocks along the other side become f16.
pub fn turned_type(dtype: TensorType) -> TensorType {
    if dtype.block_len() == 1 { dtype } else { TensorType::F16 }
}

/// Into how many groups `heads` query heads of latent attention are cut, so that there are as many as `wanted`, where they
/// can be: halves, as long as each has some heads.
pub fn head_groups(heads: usize, wanted: usize) -> usize {
    let mut groups = 1;
    while groups < wanted && heads.is_multiple_of(2 * groups) && heads / (2 * groups) >= LATENT_GROUP_LEAST {
        groups *= 2;
    }
    groups
}

/// The queries that a thread takes through pages.
struct Queries {
    /// At once.
    most: usize,
    key_dim: usize,
    value_dim: usize,
}

impl Queries {
    /// Their elements, their scores, and what they gather.
    fn bytes(&self) -> u64 {
        let scores = product([self.most, FLOAT, PAGE_POSITIONS + LANES]);
        sum([product([self.most, FLOAT, self.key_dim]), scores, self.gathered(self.most)])
    }

    /// What so many of them gather.
    fn gathered(&self, queries: usize) -> u64 {
        product([queries, FLOAT, filled(self.value_dim).saturating_add(2 * LANES)])
    }
}

/// Elements, filled up to whole vectors.
fn filled(elements: usize) -> usize {
    elements.div_ceil(LANES).saturating_mul(LANES)
}
