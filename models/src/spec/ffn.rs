//! The feed-forward half of a layer.

use serde::{Deserialize, Serialize};

use super::{Activation, Bias, ExpertsSpec};

/// The feed-forward half of a layer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Ffn {
    /// down(act(gate(x)) · up(x)).
    Gated {
        /// Width between the products.
        inner: usize,
        /// The activation on the gate.
        activation: Activation,
        /// Whether the three products have biases.
        bias: Bias,
    },
    /// down(act(up(x))).
    Plain {
        /// Width between the products.
        inner: usize,
        /// The activation between the products.
        activation: Activation,
        /// Whether both products have biases.
        bias: Bias,
    },
    /// A mixture of experts.
    Experts(ExpertsSpec),
    /// A gated FFN and a mixture of experts side by side, each between norms of its own, whose sum is the half's output
    /// (Gemma 4): `PostGatedNorm` follows the former; `ExpertsNorm` and `PostExpertsNorm` stand around the latter, whose router
    /// takes what `RouterNorm` makes of the same input, divided by the root of its width.
    Both {
        /// Width between the gated FFN's products.
        inner: usize,
        /// The mixture, whose activation both have.
        experts: ExpertsSpec,
    },
    /// There is none: the layer is its first half alone (Nemotron-H).
    None,
}

impl Ffn {
    /// The mixture of experts, where there is one.
    pub fn experts(&self) -> Option<&ExpertsSpec> {
        match self {
            Self::Experts(experts) | Self::Both { experts, .. } => Some(experts),
            Self::Gated { .. } | Self::Plain { .. } | Self::None => None,
        }
    }
}
