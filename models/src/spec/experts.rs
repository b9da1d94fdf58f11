//! A mixture of experts: what there is, how a token's experts are chosen, and what their outputs weigh.

use serde::{Deserialize, Serialize};

use super::{Activation, Bias};

/// A mixture of experts: Σ weight · expert(x) over those of the experts that the router chooses, and maybe one that every
/// token goes through.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ExpertsSpec {
    /// How many experts there are.
    pub count: usize,
    /// Experts that a token goes through; at most `count`.
    pub used: usize,
    /// Width between an expert's products.
    pub inner: usize,
    /// What an expert is, the shared one as well.
    pub form: ExpertForm,
    /// Width of what experts take in and put out, where it is not the hidden state's: `ExpertLatentDown` makes their input of a
    /// row, and `ExpertLatentUp` a row of the sum of their outputs. The shared expert knows nothing of it.
    pub latent: Option<usize>,
    /// The activation between an expert's products; the shared one has its own.
    pub activation: Activation,
    /// Whether the router and the experts' products have biases.
    pub bias: Bias,
    /// From scores to experts and weights.
    pub routing: Routing,
    /// The expert that every token goes through; `None` where there is no such expert.
    pub shared: Option<SharedExpert>,
}

/// What an expert is made of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExpertForm {
    /// down(act(gate(x)) · up(x)).
    Gated,
    /// The same, and the file has each expert's gate and up as one matrix (`ExpertGateUps`), the gate above; those of the shared
    /// expert are apart.
    GatedTogether,
    /// down(act(up(x))).
    Plain,
}

/// How a token's experts are chosen and weighed.
///
/// The router's products are the scores. `scoring` makes affinities of them; the experts with the highest affinities, plus
/// what `choice_bias` adds, are chosen, in `groups` only where there are any. Of equal ones the first is chosen, among groups
/// too. Weights are made of the affinities without that bias.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Routing {
    /// What makes affinities of scores.
    pub scoring: Scoring,
    /// Whether a token's weights are made to sum to 1.
    pub weighting: Weighting,
    /// Whether each expert has a bias that counts for the choice alone (`ChoiceBias` tensor).
    pub choice_bias: Bias,
    /// Groups of experts, of which only some are chosen from.
    pub groups: Option<ExpertGroups>,
    /// Factor on the weights, 1.0 for none.
    pub weight_scale: f32,
    /// What weights are factors on.
    pub weighed: Weighed,
    /// Factors on the weights of each expert.
    pub expert_scales: ExpertScales,
}

/// Whether each expert's weights are multiplied by a factor of its own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExpertScales {
    /// They are not.
    None,
    /// By one of the file's for each expert (`ExpertScales`).
    Learned,
}

/// What makes affinities of a router's scores s.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// The scores themselves choose; then softmax over the experts used. Without a bias for the choice, that is `Softmax`
    /// with normalised weights.
    SoftmaxOfUsed,
    /// σ(s) of each expert alone (DeepSeek V3).
    Sigmoid,
    /// √ln(1 + e^s) of each expert alone (DeepSeek V4).
    SqrtSoftplus,
}

/// Whether a token's weights are made to sum to 1.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Weighting {
    /// Affinities are weights as they are.
    AsScored,
    /// They are divided by their sum over the experts used, or by [`LEAST_SUM`] where the sum is less.
    Normalised,
}

/// The least that normalised weights are divided by: ggml's, the smallest normal number of an f16.
pub const LEAST_SUM: f32 = 1.0 / 16_384.0;

/// Groups of experts (DeepSeek V3): a group's score is the sum of its two highest affinities, each with the choice's bias.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExpertGroups {
    /// How many groups there are, each of as many neighbouring experts, at least two.
    pub count: usize,
    /// Groups with the highest scores, whose experts alone can be chosen; fewer than `count`.
    pub used: usize,
}

/// What an expert's weight is a factor on.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Weighed {
    /// Its input (Llama 4).
    Input,
    /// Its output.
    Output,
}

/// The expert that every token goes through.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct SharedExpert {
    /// Width between its products.
    pub inner: usize,
    /// The activation between them.
    pub activation: Activation,
    /// What its output is multiplied by.
    pub gate: SharedGate,
}

/// What a shared expert's output is multiplied by.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum SharedGate {
    /// Nothing.
    None,
    /// σ(`SharedRouter` · x).
    Sigmoid,
}

impl Routing {
    /// Without biases, groups or scales; weights are factors on outputs.
    pub fn plain(scoring: Scoring, weighting: Weighting) -> Self {
        Self {
            scoring,
            weighting,
            choice_bias: Bias::None,
            groups: None,
            weight_scale: 1.0,
            weighed: Weighed::Output,
            expert_scales: ExpertScales::None,
        }
    }
}
