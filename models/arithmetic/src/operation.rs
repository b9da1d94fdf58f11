//! What the operations of a layer may be: the choices that a model's description makes and a kernel carries out.

use serde::{Deserialize, Serialize};

/// An activation; on a gate, its result is multiplied by `up`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Activation {
    /// x·σ(x).
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
    /// x·σ(1.702·x), where x is at most 7. It is multiplied by `up` + 1, where `up` is between -7 and 7 (gpt-oss).
    SiluClamped,
    /// x·σ(x), where that is at most the limit. It is multiplied by `up`, where that is no farther from 0 than the limit (Step 3.5).
    SiluLimited(f32),
    /// max(x, 0)² (Nemotron-H).
    ReluSquared,
}

impl Activation {
    /// All of them, in their order; the one with a limit with some limit.
    pub const ALL: [Self; 5] =
        [Self::Silu, Self::GeluTanh, Self::SiluClamped, Self::SiluLimited(0.5), Self::ReluSquared];
}

/// How far back a query attends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Window {
    /// All positions up to its own.
    Full,
    /// Its own position and the `n - 1` before it.
    Sliding(usize),
    /// Those of its chunk of `n` positions, up to its own (Llama 4).
    Chunked(usize),
}

impl Window {
    /// How many of so many positions a query at the end of them attends to, at most.
    pub fn within(self, positions: usize) -> usize {
        match self {
            Self::Full => positions,
            Self::Sliding(most) | Self::Chunked(most) => positions.min(most),
        }
    }
}

/// Rotary position embedding of the first `dims` elements of each head.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Rope {
    /// Which elements form a rotated pair.
    pub pairing: RopePairing,
    /// Elements of the head that are rotated; even.
    pub dims: usize,
    /// Base θ of the frequencies θ^(-2i/dims).
    pub base: f32,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
    /// Factor on cosines and sines, 1.0 for none.
    pub magnitude: f32,
}

/// Which elements form a rotated pair.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum RopePairing {
    /// (2i, 2i+1): what ggml calls "normal"; llama GGUFs are permuted for it.
    Interleaved,
    /// (i, i + dims/2): what ggml calls "neox".
    Halves,
}

/// How RoPE frequencies are changed for longer contexts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum RopeScaling {
    /// They are not changed.
    None,
    /// Positions are divided by the factor.
    Linear(f32),
    /// Each frequency is divided by its factor in the `RopeFactors` tensor (Llama 3).
    Factors,
    /// Each frequency is divided by its factor in the `RopeFactorsLong` tensor where the model's `context` exceeds
    /// `original` positions, and by its factor in `RopeFactorsShort` where it does not (Phi 3).
    LongRope {
        /// The context before it was extended.
        original: usize,
    },
    /// YaRN (Peng et al., 2023): frequencies that turn more than `beta_fast` times in the original context stay, those that
    /// turn less than `beta_slow` times are divided by `factor`, and those between change gradually from one to the other.
    Yarn {
        /// What slow frequencies are divided by.
        factor: f32,
        /// The context before it was extended.
        original: usize,
        /// A frequency that turns more often than this stays as it is.
        beta_fast: f32,
        /// A frequency that turns less often than this is divided by `factor`.
        beta_slow: f32,
    },
}
