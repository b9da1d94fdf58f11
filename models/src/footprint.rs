//! What shards take of a worker's memory: the one account by which the planner promises and the worker refuses.
//!
//! A figure is what the worker's whole process has resident at most, in bytes. The numbers that it is made of (positions
//! per page, rows of logits, frames held) are constants here, and the code that fills the memory reads them from here.

mod layer;
mod mixer;

use std::{num::NonZeroUsize, ops::Range, slice};

pub use qmesh_arithmetic::layout::{LANES, PAGE_POSITIONS};
use qmesh_arithmetic::layout::{QUANT_BLOCK, QUANT_BLOCK_BYTES};

use self::layer::LayerFootprint;
pub use self::mixer::{head_groups, turned_type};
use crate::spec::{LayerSpec, ModelSpec, Rope, TensorRole, TensorSpec};

/// Rows whose logits are in memory at once: a row of a large vocabulary is a megabyte.
pub const LOGIT_ROWS: usize = 32;
/// Sequences of a step whose rows are summed up: a sum has eight bytes for each value of a row.
pub const SUMMED_SEQUENCES: usize = 16;
/// Frames that a worker holds at once: one computes while the next is received and the last is sent, and one to spare.
pub const FRAMES_HELD: usize = 4;
/// Frames on a worker's links beside those: one that is arriving, and one that is sent and not yet acknowledged.
pub const FRAMES_ON_LINKS: usize = 2;
/// Bytes of outputs that a thread has in its L2 cache at once.
pub const TILE_BYTES: usize = 512 << 10;
/// The most queries that a thread takes through a page of keys at once.
pub const QUERIES_TOGETHER: usize = 256;
/// The fewest queries that it takes at once, where there are that many.
pub const QUERIES_LEAST: usize = 16;
/// The fewest query heads of latent attention that go through pages together, where there are that many.
pub const LATENT_GROUP_LEAST: usize = 4;
/// Tasks for each thread into which attention is cut at least, where there is enough of it.
pub const TASKS_PER_THREAD: usize = 4;
/// Rows at the end of a session that layers with a state can take back: a token and the drafts behind it.
pub const ROLLBACK_ROWS: usize = 16;
/// Rows of a text that a model which drafts for another one computes at a time.
pub const DRAFT_READ_ROWS: usize = 128;
/// What a worker's process takes beside its shards and their threads: its program, the network's buffers, the allocator.
/// Most of it is the program's own code, as far as it runs: 9 MB of a release build, 15 MB of one that is not optimised. The rest
/// comes to 5 MB.
pub const PROCESS_BYTES: u64 = 21 << 20;

/// Rows of the largest step where prompts are cut into chunks of `chunk_rows`: where a prompt is scored, the last row of a
/// chunk is computed once more in the next one, which may be in excess.
pub const fn step_rows(chunk_rows: usize) -> usize {
    chunk_rows.saturating_add(1)
}

/// Sessions that there is room for where layers have a state of each: as many as may have a whole context.
pub const fn sessions(kv_positions: usize, context: usize) -> usize {
    match kv_positions.checked_div(context) {
        None | Some(0) => 1,
        Some(sessions) => sessions,
    }
}

/// What a worker shall hold, and with what room.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShardDemand {
    /// Which layers; not empty, inside the model.
    pub layers: Range<usize>,
    /// KV positions of all sessions together.
    pub kv_positions: usize,
    /// The most positions of one session.
    pub context: usize,
    /// The most rows of a chunk of a prompt.
    pub chunk_rows: usize,
    /// Threads that compute.
    pub threads: usize,
    /// How many of a layer's experts are in memory at a time, where the others stay on disk; `None` where all are.
    pub experts_in_memory: Option<NonZeroUsize>,
}

/// What shards take of a worker's memory, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Footprint {
    /// Tensors: packed in place, they take what they take in the file.
    pub weight_bytes: u64,
    /// Keys and values of every position, in whole pages.
    pub kv_bytes: u64,
    /// The states of all sessions, in layers that have some.
    pub state_bytes: u64,
    /// What a step needs: activations, logits, what each thread works in, frames that wait; while the shards are loaded,
    /// what packing them needs; and what fills up the groups of rows that are packed.
    pub buffer_bytes: u64,
    /// The process itself.
    pub process_bytes: u64,
}

impl Footprint {
    /// All of it: what the process has resident at most.
    pub fn total_bytes(&self) -> u64 {
        sum([self.weight_bytes, self.kv_bytes, self.state_bytes, self.buffer_bytes, self.process_bytes])
    }
}

/// The account of one model. Its numbers may come from outside: sums and products stop at what 64 bits hold.
#[derive(Clone, Debug)]
pub struct Footprints<'a> {
    spec: &'a ModelSpec,
    layers: Vec<LayerFootprint>,
    /// Tensors that belong to no layer.
    others: Vec<(TensorRole, TensorFootprint)>,
    /// Bytes of the cosines and sines of one row, for all kinds of RoPE in the model.
    rope_bytes: u64,
}

impl<'a> Footprints<'a> {
    /// The account of `spec`, which lists at least the tensors of the shards that will be asked for.
    pub fn new(spec: &'a ModelSpec) -> Self {
        let mut layers: Vec<_> = (0..spec.layers.len()).map(|layer| LayerFootprint::new(spec, layer)).collect();
        let mut others = Vec::new();
        for tensor in &spec.tensors {
            let bytes = TensorFootprint::of(tensor);
            let TensorRole::Layer(layer, part) = tensor.role else {
                others.push((tensor.role, bytes));
                continue;
            };
            if let Some(layer) = layers.get_mut(layer.0) {
                layer.add(part, tensor.bytes, bytes);
            }
        }
        let mut ropes: Vec<&Rope> = Vec::new();
        for rope in spec.layers.iter().flat_map(LayerSpec::ropes) {
            if !ropes.contains(&rope) {
                ropes.push(rope);
            }
        }
        let rope_bytes = ropes.iter().fold(0, |bytes, rope| sum([bytes, product([FLOAT, rope.dims])]));
        Self { spec, layers, others, rope_bytes }
    }

    /// What a worker with this shard takes.
    pub fn shard(&self, demand: &ShardDemand) -> Footprint {
        self.shards(slice::from_ref(demand))
    }

    /// What a worker with these shards takes: a tensor that several of them hold counts once, caches and buffers each.
    pub fn shards(&self, demands: &[ShardDemand]) -> Footprint {
        let held = |role| demands.iter().any(|demand| self.spec.holds(&demand.layers, role));
        let layers = self.layers.iter().enumerate().map(|(number, layer)| layer.held(number, demands));
        let others = self.others.iter().filter(|(role, _)| held(*role)).map(|(_, tensor)| *tensor);
        let tensors = layers.chain(others);
        let tensors = tensors.fold(TensorFootprint::default(), TensorFootprint::and);
        let kv_bytes = demands.iter().fold(0, |bytes, demand| sum([bytes, self.kv_bytes(demand)]));
        let state_bytes = demands.iter().fold(0, |bytes, demand| sum([bytes, self.state_bytes(demand)]));
        let serving = demands.iter().fold(0, |bytes, demand| sum([bytes, self.buffer_bytes(demand)]));
        Footprint {
            weight_bytes: tensors.bytes,
            kv_bytes,
            state_bytes,
            // Nothing is cached before everything is loaded.
            buffer_bytes: sum([
                tensors.padding,
                serving.max(tensors.packing.saturating_sub(sum([kv_bytes, state_bytes]))),
            ]),
            process_bytes: PROCESS_BYTES,
        }
    }

    /// Bytes by which a shard of `layers` grows with each further expert of every layer that is in memory.
    pub fn expert_bytes(&self, layers: &Range<usize>) -> u64 {
        let layers = self.layers.get(layers.clone()).unwrap_or_default();
        layers.iter().fold(0, |bytes, layer| sum([bytes, layer.experts.slot().total()]))
    }

    /// Bytes of the states of one session in the shard of `layers`.
    pub fn session_bytes(&self, layers: &Range<usize>) -> u64 {
        let layers = self.layers.get(layers.clone()).unwrap_or_default();
        layers.iter().fold(0, |bytes, layer| sum([bytes, layer.session_bytes]))
    }

    fn kv_bytes(&self, demand: &ShardDemand) -> u64 {
        let page = self.layers_of(demand).fold(0, |bytes, layer| sum([bytes, layer.page_bytes]));
        let pages = demand.kv_positions.div_ceil(PAGE_POSITIONS) as u64;
        pages.saturating_mul(allocated(page.saturating_add(LINE_BYTES)))
    }

    fn state_bytes(&self, demand: &ShardDemand) -> u64 {
        let session = self.session_bytes(&demand.layers);
        product([sessions(demand.kv_positions, demand.context)]).saturating_mul(session)
    }

    fn buffer_bytes(&self, demand: &ShardDemand) -> u64 {
        let ShardDemand { ref layers, kv_positions, context, chunk_rows, threads, .. } = *demand;
        let (rows, threads) = (step_rows(chunk_rows), threads.max(1));
        let most = |of: &dyn Fn(&LayerFootprint) -> u64| self.layers_of(demand).map(of).max().unwrap_or(0);
        let row = product([FLOAT, self.spec.hidden]);
        let is_last = layers.end == self.spec.layers.len();
        let travelling = |layer: usize| product([FLOAT, self.spec.row_width(layer)]);
        let (incoming, outgoing) = (travelling(layers.start), if is_last { row } else { travelling(layers.end) });
        // The frame's payload, its values and the first layer's input; a first stage gets ids, which are few, and makes what the layers
        // take in beside.
        let beside = incoming.saturating_sub(row);
        let input = match layers.start {
            0 => sum([row, ID_BYTES, beside.saturating_mul(3), row.min(beside)]),
            _ => incoming.saturating_mul(3),
        };
        // What comes out of the last layer is copied once before it is a frame's payload.
        let working = most(&|layer| layer.row_bytes).max(outgoing.saturating_mul(2));
        let step = product([rows]).saturating_mul(sum([input, self.rope_bytes, working]));
        let frame_row = if layers.start == 0 { outgoing } else { incoming.max(outgoing) };
        let frames = product([FRAMES_HELD - 1 + FRAMES_ON_LINKS, rows]).saturating_mul(frame_row);
        let head = if is_last { self.head_bytes(rows, threads) } else { 0 };
        let tiles = product([TILE_BYTES.max(TILE_ROW_BYTES.saturating_mul(rows))]);
        let each = sum([STACK_BYTES, tiles, most(&|layer| layer.thread_bytes)]);
        let made = self.layers_of(demand).fold(0, |bytes, layer| sum([bytes, layer.made_bytes]));
        let parts = most(&|layer| layer.parts_bytes(rows, context.min(kv_positions), threads));
        sum([step, frames, head, product([threads]).saturating_mul(each), parts, made])
    }

    /// Logits and the activations that they are made of, what threads sort while they sample, and sums of rows.
    fn head_bytes(&self, rows: usize, threads: usize) -> u64 {
        let ModelSpec { hidden, vocab, .. } = *self.spec;
        // Sums, and the frame's payload that they become.
        let sums = product([2, rows.min(SUMMED_SEQUENCES), size_of::<i64>(), hidden]);
        let rows = rows.min(LOGIT_ROWS);
        let row = sum([product([FLOAT, vocab]), product([FLOAT, hidden]), quantized(hidden).saturating_mul(2)]);
        let sampled = product([SAMPLING_BYTES, vocab, threads.min(rows)]);
        sum([product([rows]).saturating_mul(row), sampled, sums])
    }

    fn layers_of(&self, demand: &ShardDemand) -> impl Iterator<Item = &LayerFootprint> {
        self.layers.get(demand.layers.clone()).unwrap_or_default().iter()
    }
}

/// Bytes of a tensor, or of some.
#[derive(Clone, Copy, Debug, Default)]
struct TensorFootprint {
    /// Bytes in the file.
    bytes: u64,
    /// Bytes beside those for as long as it is loaded.
    padding: u64,
    /// Bytes beside those until everything is loaded.
    packing: u64,
}

impl TensorFootprint {
    fn of(tensor: &TensorSpec) -> Self {
        let TensorSpec { rows, cols, bytes, .. } = *tensor;
        let row = bytes.div_ceil(rows.max(1) as u64);
        let packed = row.saturating_mul(rows.max(1).next_multiple_of(LANES) as u64);
        if rows > 1 {
            // Each begins at a cache line.
            let resident = packed.div_ceil(LINE_BYTES).saturating_mul(LINE_BYTES);
            // The factors of a convolution are there once more, as it takes them.
            let is_taps = matches!(tensor.role, TensorRole::Layer(_, part) if part.is_taps());
            let copied = if is_taps { product([FLOAT, rows, cols]) } else { 0 };
            Self { bytes, padding: sum([resident.saturating_sub(bytes), copied]), packing: 0 }
        } else {
            // A vector is kept as f32, and packed like a matrix before.
            Self { bytes, padding: product([FLOAT, cols]).saturating_sub(bytes), packing: packed }
        }
    }

    fn total(self) -> u64 {
        sum([self.bytes, self.padding])
    }

    fn times(self, count: usize) -> Self {
        let times = |bytes: u64| bytes.saturating_mul(count as u64);
        Self { bytes: times(self.bytes), padding: times(self.padding), packing: times(self.packing) }
    }

    fn and(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            padding: self.padding.saturating_add(other.padding),
            packing: self.packing.saturating_add(other.packing),
        }
    }
}

/// Where the matrices of one expert lie in its room, and the bytes of that: each begins at a cache line.
pub fn expert_places(lens: impl Iterator<Item = usize>) -> (Vec<Range<usize>>, usize) {
    let mut end: usize = 0;
    let place = |len| {
        let start = end.next_multiple_of(LINE_BYTES as usize);
        end = start + len;
        start..end
    };
    let places = lens.map(place).collect();
    (places, end)
}

/// What an allocation of so many bytes takes: large ones are whole pages of the system, with a header.
fn allocated(bytes: u64) -> u64 {
    const LARGE: u64 = 128 << 10;
    if bytes < LARGE { bytes } else { (bytes / SYSTEM_PAGE).saturating_add(2).saturating_mul(SYSTEM_PAGE) }
}

/// Bytes of so many quantised activations.
fn quantized(elements: usize) -> u64 {
    product([elements.div_ceil(QUANT_BLOCK), QUANT_BLOCK_BYTES])
}

fn product<const N: usize>(factors: [usize; N]) -> u64 {
    factors.into_iter().fold(1, |product, factor| product.saturating_mul(factor as u64))
}

fn sum<const N: usize>(terms: [u64; N]) -> u64 {
    terms.into_iter().fold(0, u64::saturating_add)
}

/// Bytes of an activation.
const FLOAT: usize = size_of::<f32>();
/// Bytes in which the system gives memory.
const SYSTEM_PAGE: u64 = 4 << 10;
/// Bytes to which matrices and pages are aligned.
const LINE_BYTES: u64 = 64;
/// Bytes of a row's token id and position, in all lists that have them.
const ID_BYTES: u64 = 32;
/// Bytes of a row's outputs in a thread's smallest share: two groups of two matrices, or of two terms.
const TILE_ROW_BYTES: usize = 2 * 2 * LANES * FLOAT;
/// Bytes of a thread's stack that are ever touched.
const STACK_BYTES: u64 = 128 << 10;
/// Bytes of one row's logit in a thread that samples: adjusted, numbered and as a share.
const SAMPLING_BYTES: usize = 16;

#[cfg(test)]
mod tests;
