//! A model's shape as data: what a family function makes of GGUF metadata, and all that the engine ever sees of it.
//!
//! Alternatives are enum variants and are matched without `_`, so that the compiler lists every place that a new
//! variant must be met. The spec travels to the workers as JSON, so every type here is `Serialize + Deserialize`.

mod excerpt;
mod experts;
mod ffn;
mod indexer;
mod latent;
mod layer_inputs;
mod recurrence;
mod temperature;
mod tensor;

use std::{num::NonZeroUsize, ops::Range};

pub use qmesh_arithmetic::{Activation, Rope, RopePairing, RopeScaling, Window};
use serde::{Deserialize, Serialize};

pub use self::experts::{
    ExpertForm, ExpertGroups, ExpertScales, ExpertsSpec, LEAST_SUM, Routing, Scoring, SharedExpert, SharedGate,
    Weighed, Weighting,
};
pub use self::ffn::Ffn;
pub use self::indexer::{BlockIndexerSpec, IndexerSpec, Positions};
pub use self::latent::{HeadMatrices, LatentQueries, LatentSpec};
pub use self::layer_inputs::LayerInputs;
pub use self::recurrence::{DeltaGates, DeltaInputs, DeltaOutputGate, GatedDeltaSpec, KeySharing, StateSpaceSpec};
pub use self::temperature::Temperature;
pub use self::tensor::{LayerIndex, LayerTensor, TensorRole, TensorSpec};

/// The shape of one model and its one list of tensors.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ModelSpec {
    /// Display name: `general.name`, or the file's stem.
    pub name: String,
    /// The family's name, for people; no code decides by it.
    pub family: String,
    /// Width of the hidden state, in elements.
    pub hidden: usize,
    /// Rows of the embedding table and of the head.
    pub vocab: usize,
    /// The most positions the model was trained for.
    pub context: usize,
    /// Factor on the embedding row (Gemma: √hidden), 1.0 for none.
    pub embedding_scale: f32,
    /// What each layer takes in of a token beside the hidden state, where they do.
    pub layer_inputs: Option<LayerInputs>,
    /// One entry per layer, in order.
    pub layers: Vec<LayerSpec>,
    /// From the last hidden state to logits.
    pub head: HeadSpec,
    /// Every tensor of the model (or, in a shard's spec, of the shard), in file order.
    pub tensors: Vec<TensorSpec>,
}

/// What one layer computes. One of its halves may be missing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LayerSpec {
    /// The first half: how a position's row takes in what stands before it.
    pub mixer: Mixer,
    /// The feed-forward half.
    pub ffn: Ffn,
    /// Where the norms stand.
    pub norms: NormPlacement,
    /// What these norms compute; those on q and k are always RMS norms.
    pub norm: NormSpec,
    /// Factor on what each half adds to the hidden state, 1.0 for none.
    pub residual_scale: f32,
    /// Factor on all that comes out of the layer.
    pub output_scale: OutputScale,
}

/// Whether all that comes out of a layer is multiplied by a factor.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum OutputScale {
    /// It is not.
    None,
    /// By one of the file's (`OutputScale`).
    Learned,
}

/// How the rows of positions are mixed: the one part of a layer in which a row knows of other rows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Mixer {
    /// Grouped-query attention.
    Attention(AttentionSpec),
    /// The gated delta rule: a state of each session takes the place of keys and values.
    GatedDelta(GatedDeltaSpec),
    /// Latent attention.
    Latent(LatentSpec),
    /// A state space: a state of each session takes the place of keys and values here too.
    StateSpace(StateSpaceSpec),
    /// They are not: the layer is its feed-forward half alone (Nemotron-H).
    None,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct NormSpec {
    /// Which formula.
    pub kind: NormKind,
    /// The ε that is added under the root.
    pub eps: f32,
}

/// The kinds of norms.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum NormKind {
    /// x / √(mean x² + ε) · gain.
    Rms,
    /// (x − mean x) / √(variance of x + ε) · gain + bias.
    Layer,
    /// The same without a bias (Command R).
    LayerUnbiased,
}

/// Grouped-query attention: `heads` query heads share `kv_heads` key/value heads.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// The cap c: each score s becomes c · tanh(s / c). `None` leaves scores as they are.
    pub soft_cap: Option<f32>,
    /// Scores that belong to no position.
    pub sinks: Sinks,
    /// How far back a query attends.
    pub window: Window,
    /// Rotary position embedding; `None` for a layer that knows no positions.
    pub rope: Option<Rope>,
    /// RMS norm on q and k (`QNorm`, `KNorm` tensors), before RoPE where it does not say otherwise.
    pub qk_norm: QkNorm,
    /// How queries grow with their position, where they do.
    pub temperature: Option<Temperature>,
    /// Where keys and values come from.
    pub source: KvSource,
    /// What values are.
    pub values: Values,
    /// What chooses the blocks of positions that a row attends to, where it does not attend to all.
    pub blocks: Option<BlockIndexerSpec>,
    /// Whether q, k and v have biases.
    pub qkv_bias: Bias,
    /// Whether the product that follows attention has a bias.
    pub output_bias: Bias,
    /// Whether what is attended is gated before that product.
    pub output_gate: OutputGate,
}

/// Whether what query heads have attended is gated.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum OutputGate {
    /// It is not.
    None,
    /// Multiplied, element by element, by σ of as many more outputs of `Q`: each head's gate stands behind its query.
    WithQuery,
    /// Each head as a whole multiplied by σ of what a product of the layer's normed input gives for it (`HeadGates`; Step 3.5).
    PerHead,
}

/// Scores that belong to no position: they take their share of a softmax and have no value.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Sinks {
    /// There are none.
    None,
    /// One per query head (`Sinks` tensor).
    PerHead,
}

/// Where the keys and values that a layer's queries meet come from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KvSource {
    /// The layer makes its own.
    Own,
    /// An earlier layer has made them, in heads of the same shape; what is said of the layer's own values does not count. No shard
    /// can begin between the two.
    Layer(LayerIndex),
}

/// What values are.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Values {
    /// What `V` gives.
    Own,
    /// The same, after an RMS norm over each head's elements without gains (Gemma 4).
    OwnNormed,
    /// What `K` gives, after such a norm: there is no `V` (Gemma 4).
    KeysNormed,
}

/// Whether q and k are normalised, and over what.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum QkNorm {
    /// They are not.
    None,
    /// RMS norm over each head's elements.
    PerHead,
    /// RMS norm over each head's elements, after RoPE (Hunyuan).
    PerHeadRotated,
    /// The same without gains (Llama 4).
    PerHeadRotatedBare,
    /// RMS norm over all heads' elements together (OLMo 2).
    AllHeads,
}

/// Whether a product has a bias.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Bias {
    /// It has none.
    None,
    /// It has one.
    Present,
}

/// Where a layer's norms stand.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum NormPlacement {
    /// Before attention and before the FFN.
    Pre,
    /// Before each half, and once more on its output before the residual is added (Gemma 2 and 3).
    PreAndPost,
    /// On each half's output only, before the residual is added (OLMo 2).
    Post,
    /// One before both halves, which stand side by side: the second does not see what the first adds (Command R).
    Beside,
}

/// From the last hidden state to logits.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HeadSpec {
    /// The norm before the matrix.
    pub norm: NormSpec,
    /// Which matrix makes the logits.
    pub matrix: HeadMatrix,
    /// The cap c: each logit x becomes c · tanh(x / c). `None` leaves logits as they are.
    pub soft_cap: Option<f32>,
    /// Factor on the logits, 1.0 for none.
    pub logit_scale: f32,
}

/// Which matrix makes the logits.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum HeadMatrix {
    /// The embedding table again.
    Tied,
    /// A matrix of its own (`TensorRole::Output`).
    Own,
}

impl LayerSpec {
    /// The grouped-query attention, where rows are mixed by it.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Latent(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
        }
    }

    /// The grouped-query attention, to be changed, where rows are mixed by it.
    pub fn attention_mut(&mut self) -> Option<&mut AttentionSpec> {
        match &mut self.mixer {
            Mixer::Attention(attention) => Some(attention),
            Mixer::Latent(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
        }
    }

    /// The experts, where the second half has some.
    pub fn experts(&self) -> Option<&ExpertsSpec> {
        self.ffn.experts()
    }

    /// The rotation by position, where the layer knows positions.
    pub fn rope(&self) -> Option<&Rope> {
        match &self.mixer {
            Mixer::Attention(attention) => attention.rope.as_ref(),
            Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
            Mixer::Latent(latent) => latent.rope.as_ref(),
        }
    }

    /// The rotation in its indexer, where it has one.
    pub fn index_rope(&self) -> Option<&Rope> {
        match &self.mixer {
            Mixer::Attention(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
            Mixer::Latent(latent) => latent.indexer().map(|indexer| &indexer.rope),
        }
    }

    /// Factors that tensors hold for `layers`: one for each pair of the widest rotation, of which others take the first.
    pub fn rope_factors(layers: &[Self]) -> usize {
        layers.iter().flat_map(Self::ropes).map(|rope| rope.dims / 2).max().unwrap_or(0)
    }

    /// All rotations of the layer.
    pub fn ropes(&self) -> impl Iterator<Item = &Rope> {
        self.rope().into_iter().chain(self.index_rope())
    }
}

impl AttentionSpec {
    /// Outputs of `Q`: those of all heads, and their gates where these come with them.
    pub fn query_outputs(&self) -> usize {
        let width = self.heads.saturating_mul(self.head_dim);
        match self.output_gate {
            OutputGate::None | OutputGate::PerHead => width,
            OutputGate::WithQuery => width.saturating_mul(2),
        }
    }

    /// Key/value heads that the layer makes and keeps.
    pub fn own_kv_heads(&self) -> usize {
        match self.source {
            KvSource::Own => self.kv_heads,
            KvSource::Layer(_) => 0,
        }
    }

    /// Outputs of `HeadGates`, where there is one.
    pub fn head_gates(&self) -> usize {
        match self.output_gate {
            OutputGate::None | OutputGate::WithQuery => 0,
            OutputGate::PerHead => self.heads,
        }
    }
}

impl Mixer {
    /// Whether a session has a state in such a layer.
    pub fn has_state(&self) -> bool {
        match self {
            Self::Attention(_) | Self::Latent(_) | Self::None => false,
            Self::GatedDelta(_) | Self::StateSpace(_) => true,
        }
    }

    /// Bytes of KV cache that one position costs, at f16.
    fn kv_bytes_per_position(&self) -> u64 {
        match self {
            Self::Attention(attention) => {
                let index_keys = attention.blocks.as_ref().map_or(0, |indexer| indexer.head_dim);
                2 * (2 * attention.own_kv_heads() * attention.head_dim + index_keys) as u64
            }
            Self::GatedDelta(_) | Self::StateSpace(_) | Self::None => 0,
            Self::Latent(latent) => {
                2 * (latent.key_dim() + latent.indexer().map_or(0, |indexer| indexer.head_dim)) as u64
            }
        }
    }
}

impl ModelSpec {
    /// Whether a shard can begin with the layer: not where that, or one behind it, goes by what an earlier one has chosen, or meets
    /// the keys and values of an earlier one.
    pub fn can_begin(&self, layer: usize) -> bool {
        let behind = self.layers.get(layer..).unwrap_or_default().iter();
        let sources = behind.clone().filter_map(LayerSpec::attention).filter_map(|attention| match attention.source {
            KvSource::Own => None,
            KvSource::Layer(source) => Some(source.0),
        });
        if sources.into_iter().any(|source| source < layer) {
            return false;
        }
        let needs_earlier = behind.map(|layer| match &layer.mixer {
            Mixer::Latent(LatentSpec { positions: Positions::AsBefore, .. }) => Some(true),
            Mixer::Latent(LatentSpec { positions: Positions::Chosen(_), .. }) => Some(false),
            Mixer::Latent(LatentSpec { positions: Positions::All, .. }) => None,
            Mixer::Attention(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
        });
        needs_earlier.flatten().next() != Some(true)
    }

    /// The layers before which the model can be cut.
    pub fn cuts(&self) -> impl Iterator<Item = usize> {
        (1..self.layers.len()).filter(|layer| self.can_begin(*layer))
    }

    /// Elements of a row that comes into `layer` (or goes to the head, where that is their number), as it travels between workers: the
    /// hidden state, and behind it what this layer and each later one takes in.
    pub fn row_width(&self, layer: usize) -> usize {
        let taken = self.layer_inputs.map_or(0, |inputs| inputs.width);
        self.hidden.saturating_add(self.layers.len().saturating_sub(layer).saturating_mul(taken))
    }

    /// The spec that a worker of `layers` gets: the same model, with only the tensors that this shard holds.
    pub fn shard(&self, layers: Range<usize>) -> Self {
        let tensors = self.tensors.iter().filter(|t| self.holds(&layers, t.role)).cloned().collect();
        Self { tensors, ..self.clone() }
    }

    /// Whether the shard of `layers` holds the tensor of `role`: stage 0 embeds, the last stage has the head (and, where
    /// the head is tied, the embedding table as well).
    pub fn holds(&self, layers: &Range<usize>, role: TensorRole) -> bool {
        let first = layers.start == 0;
        let last = layers.end == self.layers.len();
        match role {
            TensorRole::LayerEmbeddings | TensorRole::LayerProjection | TensorRole::LayerProjectionNorm => first,
            TensorRole::Embedding => first || (last && self.head.matrix == HeadMatrix::Tied),
            TensorRole::OutputNorm | TensorRole::OutputNormBias | TensorRole::Output => last,
            TensorRole::RopeFactors | TensorRole::RopeFactorsLong | TensorRole::RopeFactorsShort => true,
            TensorRole::Layer(layer, _) => layers.contains(&layer.0),
        }
    }

    /// Whether a tensor stays in its file where so many of a layer's experts are in memory at a time (`None`: all of them).
    pub fn stays_in_file(&self, role: TensorRole, in_memory: Option<NonZeroUsize>) -> bool {
        let (TensorRole::Layer(layer, part), Some(in_memory)) = (role, in_memory) else { return false };
        let experts = self.layers.get(layer.0).and_then(LayerSpec::experts);
        part.is_routed() && experts.is_some_and(|experts| in_memory.get() < experts.count)
    }

    /// Bytes in the file of the tensors that the shard of `layers` holds.
    pub fn shard_bytes(&self, layers: &Range<usize>) -> u64 {
        self.tensors.iter().filter(|t| self.holds(layers, t.role)).map(|t| t.bytes).sum()
    }

    /// Bytes of `tensor` that one token's computation reads: of experts' matrices, those of the experts it goes through.
    pub fn bytes_per_token(&self, tensor: &TensorSpec) -> u64 {
        let TensorRole::Layer(layer, part) = tensor.role else { return tensor.bytes };
        match self.layers.get(layer.0).and_then(LayerSpec::experts) {
            Some(experts) if part.is_routed() => tensor.bytes / experts.count.max(1) as u64 * experts.used as u64,
            Some(_) | None => tensor.bytes,
        }
    }

    /// Bytes of the head and of what else comes after the last layer, which every token reads. The embedding table is among it
    /// only where it is the head's matrix as well: otherwise a token looks one row of it up.
    pub fn head_bytes(&self) -> u64 {
        let last = self.layers.len().saturating_sub(1)..self.layers.len();
        let is_read = |role: TensorRole| match role {
            TensorRole::Layer(..)
            | TensorRole::LayerEmbeddings
            | TensorRole::LayerProjection
            | TensorRole::LayerProjectionNorm => false,
            TensorRole::Embedding => self.head.matrix == HeadMatrix::Tied,
            TensorRole::OutputNorm
            | TensorRole::OutputNormBias
            | TensorRole::Output
            | TensorRole::RopeFactors
            | TensorRole::RopeFactorsLong
            | TensorRole::RopeFactorsShort => self.holds(&last, role),
        };
        self.tensors.iter().filter(|tensor| is_read(tensor.role)).map(|tensor| tensor.bytes).sum()
    }

    /// Whether sessions have states in some of the layers, which cannot be shared by position as keys and values are.
    pub fn has_states(&self) -> bool {
        self.layers.iter().any(|layer| layer.mixer.has_state())
    }

    /// Bytes of KV cache that one position costs in the shard of `layers`, at f16.
    pub fn kv_bytes_per_position(&self, layers: &Range<usize>) -> u64 {
        self.layers[layers.clone()].iter().map(|layer| layer.mixer.kv_bytes_per_position()).sum()
    }

    /// Bytes of keys and values, at f16, that one row meets in `layers` with so many positions before it.
    pub fn attended_bytes(&self, layers: &Range<usize>, positions: usize) -> u64 {
        let met = |layer: &LayerSpec| {
            let window = layer.attention().map_or(Window::Full, |attention| attention.window);
            layer.mixer.kv_bytes_per_position() * window.within(positions) as u64
        };
        self.layers[layers.clone()].iter().map(met).sum()
    }
}
