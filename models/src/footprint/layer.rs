//! One layer's part of the account: its cache, and what a row of a step takes in it.

use std::num::NonZeroUsize;

use super::{
    FLOAT, PAGE_POSITIONS, SYSTEM_PAGE, ShardDemand, TensorFootprint, expert_places,
    mixer::{self, MixerFootprint},
    product, quantized, sum,
};
use crate::{
    spec::{ExpertsSpec, Ffn, LayerIndex, LayerInputs, LayerTensor, ModelSpec, TensorRole},
    tensor::TensorType,
};

/// What a layer takes, in bytes.
#[derive(Clone, Debug)]
pub(super) struct LayerFootprint {
    /// What its tensors take, but for the matrices of experts.
    tensors: TensorFootprint,
    pub(super) experts: ExpertsFootprint,
    /// Its part of a page of the KV cache.
    pub(super) page_bytes: u64,
    /// What it has of each session.
    pub(super) session_bytes: u64,
    /// What a row has in memory at most while it passes the layer, beside the layer's input.
    pub(super) row_bytes: u64,
    /// What a thread works in while it attends.
    pub(super) thread_bytes: u64,
    /// Matrices that are made of others when these are loaded.
    pub(super) made_bytes: u64,
    mixer: MixerFootprint,
}

impl LayerFootprint {
    /// What the spec's layer `index` takes, but for its tensors.
    pub(super) fn new(spec: &ModelSpec, index: usize) -> Self {
        let (layer, hidden) = (&spec.layers[index], spec.hidden);
        let inputs = Inputs::of_layer(spec, LayerIndex(index));
        let mixer = MixerFootprint::new(&layer.mixer, hidden, &inputs);
        // What was mixed is there until the layer's end.
        let ffn = sum([mixer.mixed_bytes, product([FLOAT, hidden]), ffn_bytes(&layer.ffn, hidden, &inputs)]);
        let beside = sum([mixer.mixed_bytes, layer_input_bytes(spec.layer_inputs, hidden, &inputs)]);
        let count = layer.experts().map_or(0, |experts| experts.count);
        Self {
            tensors: TensorFootprint::default(),
            experts: ExpertsFootprint { count, all: TensorFootprint::default(), lens: Vec::new() },
            page_bytes: mixer.page_bytes,
            session_bytes: mixer.session_bytes,
            row_bytes: mixer.row_bytes.max(ffn).max(beside),
            thread_bytes: mixer.thread_bytes,
            made_bytes: mixer::made_bytes(&layer.mixer, &inputs),
            mixer,
        }
    }

    /// Adds one of its tensors, which has so many bytes in the file.
    pub(super) fn add(&mut self, tensor: LayerTensor, file_bytes: u64, bytes: TensorFootprint) {
        let ExpertsFootprint { count, all, lens } = &mut self.experts;
        if tensor.is_routed() {
            *all = all.and(bytes);
            lens.push(file_bytes / (*count).max(1) as u64);
        } else {
            self.tensors = self.tensors.and(bytes);
        }
    }

    /// What those of the shards that have the layer, whose number this is, hold of it together. A tensor that several of them
    /// have in memory counts once; room for some experts at a time, each.
    pub(super) fn held(&self, number: usize, demands: &[ShardDemand]) -> TensorFootprint {
        let demands = demands.iter().filter(|demand| demand.layers.contains(&number));
        let (mut held, mut all) = (None, false);
        for demand in demands {
            let held = held.get_or_insert(self.tensors);
            match demand.experts_in_memory.map(NonZeroUsize::get).filter(|slots| *slots < self.experts.count) {
                Some(slots) => *held = held.and(self.experts.slot().times(slots)),
                None => all = true,
            }
        }
        let held = held.unwrap_or_default();
        if all { held.and(self.experts.all) } else { held }
    }

    /// What threads have of each position of sessions: while positions are chosen; and what they gather from each page on its own,
    /// where there are so few rows that they share a session's pages.
    pub(super) fn parts_bytes(&self, rows: usize, context: usize, threads: usize) -> u64 {
        let chosen = product([threads, context.div_ceil(PAGE_POSITIONS), PAGE_POSITIONS]);
        let chosen = chosen.saturating_mul(self.mixer.position_bytes);
        if threads == 1 {
            return chosen;
        }
        let sessions = self.mixer.sessions_apart(threads).min(rows);
        sum([chosen, product([sessions, context.div_ceil(PAGE_POSITIONS)]).saturating_mul(self.mixer.part_bytes)])
    }
}

/// The matrices of a layer's experts.
#[derive(Clone, Debug)]
pub(super) struct ExpertsFootprint {
    count: usize,
    /// All of them.
    all: TensorFootprint,
    /// Bytes of one expert's.
    lens: Vec<u64>,
}

impl ExpertsFootprint {
    /// Room for one expert: whole pages of the system.
    pub(super) fn slot(&self) -> TensorFootprint {
        // Real ones are far smaller, and a sum of three of these overflows nothing.
        let lens = self.lens.iter().map(|len| usize::try_from(*len).unwrap_or(usize::MAX).min(usize::MAX / 8));
        let (bytes, (_, room)) = (self.lens.iter().fold(0, |bytes, len| sum([bytes, *len])), expert_places(lens));
        let room = (room as u64).next_multiple_of(SYSTEM_PAGE);
        TensorFootprint { bytes, padding: room.saturating_sub(bytes), packing: 0 }
    }
}

/// How products take their inputs: as floats, quantised, or (where matrices differ) both.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Input {
    floats: bool,
    blocks: bool,
}

impl Input {
    /// What takes both.
    fn and(self, other: Self) -> Self {
        Self { floats: self.floats || other.floats, blocks: self.blocks || other.blocks }
    }

    pub(super) fn bytes(self, elements: usize) -> u64 {
        let floats = if self.floats { product([FLOAT, elements]) } else { 0 };
        let blocks = if self.blocks { quantized(elements) } else { 0 };
        sum([floats, blocks])
    }
}

/// The inputs of a layer's products.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// What takes the layer's input.
    pub(super) attention: Input,
    /// Of latent attention: what makes queries of their latent, and each head's two matrices.
    pub(super) queries: Input,
    pub(super) keys: Input,
    pub(super) values: Input,
    /// What takes what is narrower than a row.
    pub(super) narrow: Input,
    /// How heads' matrices are stored where they are joined.
    pub(super) joined: Option<TensorType>,
    /// What takes what was mixed.
    pub(super) output: Input,
    ffn: Input,
    /// Of what a layer takes in beside the hidden state: its gate, and what follows.
    gate: Input,
    gated: Input,
    /// Of experts, where their rows are not the layer's; and of what makes the layer's rows of these.
    experts: Input,
    widen: Input,
    down: Input,
}

impl Inputs {
    fn of_layer(spec: &ModelSpec, layer: LayerIndex) -> Self {
        use LayerTensor::{
            Alpha, AlphaDown, AlphaUp, AttnOutput, Beta, BetaAlpha, DeltaQkv, Down, ExpertDowns, ExpertGateUps,
            ExpertGates, ExpertLatentDown, ExpertLatentUp, ExpertUps, Gate, HeadGates, IndexKey, IndexQueries,
            IndexWeights, InputGate, InputProjection, K, KB, KvA, KvB, Q, QA, QB, Router, SharedDown, SharedGate,
            SharedRouter, SharedUp, StateGate, StateGateDown, StateGateUp, StateInput, StateOutput, TimeStep, Up, V,
            VB,
        };
        let mut inputs = Self::default();
        for tensor in &spec.tensors {
            let TensorRole::Layer(of, part) = tensor.role else { continue };
            if (of, part) == (layer, KvB) {
                // What it is turned into is of floats.
                (inputs.joined, inputs.keys.floats) = (Some(tensor.dtype), true);
            }
            let input = if matches!(
                part,
                Q | K
                    | V
                    | HeadGates
                    | QA
                    | KvA
                    | IndexKey
                    | IndexWeights
                    | DeltaQkv
                    | StateGate
                    | StateGateDown
                    | Alpha
                    | AlphaDown
                    | Beta
                    | BetaAlpha
                    | StateInput
                    | TimeStep
            ) {
                &mut inputs.attention
            } else if matches!(part, QB | IndexQueries) {
                &mut inputs.queries
            } else if matches!(part, AlphaUp | StateGateUp) {
                &mut inputs.narrow
            } else if part == KB {
                &mut inputs.keys
            } else if matches!(part, VB | KvB) {
                &mut inputs.values
            } else if matches!(part, AttnOutput | StateOutput) {
                &mut inputs.output
            } else if matches!(part, Gate | Up | Router | ExpertLatentDown | SharedRouter | SharedGate | SharedUp) {
                &mut inputs.ffn
            } else if part == InputGate {
                &mut inputs.gate
            } else if part == InputProjection {
                &mut inputs.gated
            } else if matches!(part, ExpertGates | ExpertUps | ExpertGateUps) {
                &mut inputs.experts
            } else if part == ExpertLatentUp {
                &mut inputs.widen
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

/// What a row takes while the layer takes in its row of the token's: what comes in and out, and what is between the products.
fn layer_input_bytes(layer_inputs: Option<LayerInputs>, hidden: usize, inputs: &Inputs) -> u64 {
    let Some(LayerInputs { width, .. }) = layer_inputs else { return 0 };
    let rows = product([2, FLOAT, hidden]);
    sum([rows, inputs.gate.bytes(hidden), product([2, FLOAT, width]), inputs.gated.bytes(width)])
}

/// What a row takes in the feed-forward half: its input, what is between the products, and what comes out.
fn ffn_bytes(ffn: &Ffn, hidden: usize, inputs: &Inputs) -> u64 {
    let row = product([FLOAT, hidden]);
    match *ffn {
        Ffn::Gated { inner, .. } | Ffn::Plain { inner, .. } => {
            let inner = inputs.down.bytes(inner);
            sum([inputs.ffn.bytes(hidden), inner]).max(sum([inner, row]))
        }
        // The gated FFN's output is there while experts are computed, and the router's input beside theirs.
        Ffn::Both { inner, ref experts } => {
            let gated = sum([inputs.ffn.bytes(hidden), inputs.down.bytes(inner), row]);
            sum([row, inputs.ffn.bytes(hidden), experts_bytes(experts, hidden, inputs)]).max(gated)
        }
        Ffn::Experts(ref experts) => experts_bytes(experts, hidden, inputs),
        Ffn::None => 0,
    }
}

/// What a row takes in a mixture of experts.
fn experts_bytes(experts: &ExpertsSpec, hidden: usize, inputs: &Inputs) -> u64 {
    let ExpertsSpec { count, used, inner, latent, shared, .. } = *experts;
    let row = product([FLOAT, hidden]);
    // Rows are gathered as they are, for all that take some.
    let input = match latent {
        None => inputs.ffn.and(inputs.experts).bytes(hidden),
        Some(_) => inputs.ffn.bytes(hidden),
    };
    // What an expert takes in and puts out, and what is between these rows and the layer's.
    let (of_expert, output, narrow) = match latent {
        None => (input, row, 0),
        Some(width) => {
            let (taken, floats) = (inputs.experts.bytes(width), product([FLOAT, width]));
            (taken, floats, sum([floats, taken, floats, inputs.widen.bytes(width)]))
        }
    };
    let task = product([TASK_BYTES]);
    // Rows are gathered by expert, so that each is there as often as it has experts.
    let gathered = product([used]).saturating_mul(sum([of_expert, output, task]));
    let between = product([used]).saturating_mul(inputs.down.bytes(inner));
    let shared = shared.map_or(0, |shared| sum([input, row, task, inputs.down.bytes(shared.inner)]));
    sum([input, product([FLOAT, count]), narrow, gathered, between, shared, row])
}

/// Bytes that list a row in one task: a slice, a place in a list.
pub(super) const TASK_BYTES: usize = 32;
