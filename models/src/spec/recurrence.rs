//! Layers in which a session has a state in place of keys and values: what a row does to it, and what it is asked.

use serde::{Deserialize, Serialize};

use super::Bias;

/// The gated delta rule (Yang, Kautz and Hatamizadeh, 2024): each value head has a matrix S that answers keys with values. A
/// row forgets by a decay g, corrects what S answers to its key k by β, and puts out what its query q is answered:
/// S ← g·S + k·β(v − g·Sᵀk)ᵀ, and Sᵀq. Before that, q, k and v go through a causal convolution of each channel and SiLU, and
/// each head's q and k are made as long as 1. After it, each value head is normalised (`StateNorm`) and multiplied by a gate.
/// g = exp(rate · softplus(α + `TimeStepBias`)) is one number for each value head, or for each element of its key; β, which is σ of
/// what its product gives, is one number for each value head.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct GatedDeltaSpec {
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v, each with a state; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Elements of a head of q, k or v; whole groups of 16. q·k is divided by its root.
    pub head_dim: usize,
    /// Rows that the convolution sees, the present one included.
    pub taps: usize,
    /// Which key head a value head goes by.
    pub sharing: KeySharing,
    /// Where α and β come from.
    pub gates: DeltaGates,
    /// How q, k and v are made.
    pub inputs: DeltaInputs,
    /// What multiplies the output.
    pub output_gate: DeltaOutputGate,
}

/// How the gated delta rule's q, k and v are made.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum DeltaInputs {
    /// By a product and a convolution each (`Q`, `K`, `V`; `QueryTaps`, `KeyTaps`, `ValueTaps`).
    Apart,
    /// By one product and one convolution (`DeltaQkv`, `ConvolutionTaps`).
    Together,
}

/// What multiplies the gated delta rule's output, element by element.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum DeltaOutputGate {
    /// σ of a product (`StateGateUp`) with so many outputs of another (`StateGateDown`).
    SigmoidNarrow(usize),
    /// SiLU of a product (`StateGate`).
    Silu,
}

/// Which key head value heads go by, where there are fewer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum KeySharing {
    /// Value heads of one key head stand side by side.
    Adjacent,
    /// Value heads go through the key heads in turn.
    InTurn,
}

/// Where the gated delta rule's α and β come from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum DeltaGates {
    /// A product each (`Beta`, `Alpha`); `Decay` has a rate for each value head.
    Apart,
    /// α of each element of each key by a product (`AlphaUp`) with so many outputs of another (`AlphaDown`); β by a product
    /// (`Beta`). `HeadDecay` has a rate for each value head (Kimi Linear).
    EachElement(usize),
    /// One product (`BetaAlpha`): for each key head, β of its value heads, then α of these. `Decay` has a rate for each value head.
    Together,
}

/// A state space whose heads decay as a whole (Mamba-2: Dao and Gu, 2024): each head has a matrix S, into which a row's x goes by
/// its time step d = softplus(`TimeStep` · row + `TimeStepBias`): S ← exp(`HeadDecay` · d) · S + B·(d·x)ᵀ. It puts out
/// SᵀC + `HeadSkip` · x. Before that, x, B and C (`StateInput`) go through a causal convolution of each channel and SiLU.
/// After it, all is multiplied by SiLU of a gate (`StateGate`), and each group's heads are normalised together (`GroupNorm`).
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StateSpaceSpec {
    /// Heads of x, each with a state.
    pub heads: usize,
    /// Elements of x in a head; whole groups of 16.
    pub head_dim: usize,
    /// Heads share B and C, and a norm, in so many groups; divides `heads`.
    pub groups: usize,
    /// Elements of B and of C in a group.
    pub state_size: usize,
    /// Rows that the convolution sees, the present one included.
    pub taps: usize,
    /// Whether the convolution has a bias (`ConvolutionBias`).
    pub bias: Bias,
}

impl StateSpaceSpec {
    /// Elements of x, B and C of a row together: what the convolution goes over.
    pub fn channels(&self) -> usize {
        self.values().saturating_add(self.groups.saturating_mul(self.state_size).saturating_mul(2))
    }

    /// Elements of x in all heads of a row.
    pub fn values(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Elements of the states of all heads.
    pub fn state_len(&self) -> usize {
        self.values().saturating_mul(self.state_size)
    }

    /// Elements of a row that states are made of: x, B and C before the convolution, and the time steps.
    pub fn row_len(&self) -> usize {
        self.channels().saturating_add(self.heads)
    }
}

impl GatedDeltaSpec {
    /// Elements of q, k and v of a row together: what the convolution goes over.
    pub fn channels(&self) -> usize {
        let keys = self.key_heads.saturating_mul(self.head_dim).saturating_mul(2);
        keys.saturating_add(self.values())
    }

    /// Elements of all value heads of a row.
    pub fn values(&self) -> usize {
        self.value_heads.saturating_mul(self.head_dim)
    }

    /// Elements of the states of all value heads.
    pub fn state_len(&self) -> usize {
        self.values().saturating_mul(self.head_dim)
    }

    /// Elements of α in a row.
    pub fn alphas(&self) -> usize {
        match self.gates {
            DeltaGates::Apart | DeltaGates::Together => self.value_heads,
            DeltaGates::EachElement(_) => self.values(),
        }
    }

    /// Elements of a row that states are made of: q, k and v before the convolution, α and β.
    pub fn row_len(&self) -> usize {
        self.channels().saturating_add(self.alphas()).saturating_add(self.value_heads)
    }
}
