//! The tensors of a model: their shapes, where their bytes lie, and what they are for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::tensor::TensorType;

/// One tensor: a matrix of `rows` rows of `cols` elements (a vector has one row; experts' matrices lie one below the other),
/// where its bytes lie, and what it is for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct TensorSpec {
    /// What it is for.
    pub role: TensorRole,
    /// Its name in the GGUF.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Elements per row: GGUF's `ne[0]`, the dimension that products sum over.
    pub cols: usize,
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Which part of a split GGUF holds it, from 0.
    pub part: usize,
    /// Absolute offset of its first byte in that file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// What a tensor is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub enum TensorRole {
    /// Rows looked up by token id.
    Embedding,
    /// Rows of all layers, side by side, looked up by token id.
    LayerEmbeddings,
    /// What makes rows of all layers, side by side, of an embedding.
    LayerProjection,
    /// Gain of the norm of each layer's row that this makes.
    LayerProjectionNorm,
    /// Gain of the norm before the head.
    OutputNorm,
    /// Bias of the norm before the head.
    OutputNormBias,
    /// The head's matrix.
    Output,
    /// Factors of `RopeScaling::Factors`; every shard holds them.
    RopeFactors,
    /// Factors of `RopeScaling::LongRope` for long contexts; every shard holds them.
    RopeFactorsLong,
    /// Factors of `RopeScaling::LongRope` for short contexts; every shard holds them.
    RopeFactorsShort,
    /// A tensor of one layer.
    Layer(LayerIndex, LayerTensor),
}

/// A tensor's place in its layer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum LayerTensor {
    AttnNorm,
    AttnNormBias,
    Q,
    K,
    V,
    QBias,
    KBias,
    VBias,
    QNorm,
    KNorm,
    Sinks,
    QA,
    QANorm,
    QB,
    KvA,
    KvANorm,
    KB,
    VB,
    KvB,
    IndexQueries,
    IndexQueryNorm,
    IndexKey,
    IndexKeyNorm,
    IndexKeyNormBias,
    IndexWeights,
    HeadGates,
    AttnOutput,
    AttnOutputBias,
    PostAttnNorm,
    FfnNorm,
    FfnNormBias,
    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,
    Router,
    RouterBias,
    ChoiceBias,
    ExpertGates,
    ExpertUps,
    ExpertDowns,
    ExpertGateUps,
    ExpertLatentDown,
    ExpertLatentUp,
    ExpertGateBiases,
    ExpertUpBiases,
    ExpertDownBiases,
    SharedRouter,
    SharedGate,
    SharedUp,
    SharedDown,
    PostFfnNorm,
    PostGatedNorm,
    ExpertsNorm,
    PostExpertsNorm,
    RouterNorm,
    ExpertScales,
    InputGate,
    InputProjection,
    InputNorm,
    OutputScale,
    DeltaQkv,
    StateGate,
    StateGateDown,
    StateGateUp,
    Alpha,
    AlphaDown,
    AlphaUp,
    Beta,
    BetaAlpha,
    StateInput,
    TimeStep,
    ConvolutionTaps,
    QueryTaps,
    KeyTaps,
    ValueTaps,
    ConvolutionBias,
    TimeStepBias,
    Decay,
    HeadDecay,
    HeadSkip,
    StateNorm,
    GroupNorm,
    StateOutput,
}

impl LayerTensor {
    /// Whether it holds the factors of a convolution.
    pub fn is_taps(self) -> bool {
        matches!(self, Self::ConvolutionTaps | Self::QueryTaps | Self::KeyTaps | Self::ValueTaps)
    }

    /// Whether it holds all experts' matrices, of which a token needs only some.
    pub fn is_routed(self) -> bool {
        matches!(self, Self::ExpertGates | Self::ExpertUps | Self::ExpertDowns | Self::ExpertGateUps)
    }
}

/// A layer's place in the model, from 0.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct LayerIndex(pub usize);

impl fmt::Display for LayerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
