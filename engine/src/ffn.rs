//! The feed-forward half of a block.

use candle_core::Tensor;
use qmesh_kernels::Cpu;

use crate::{
    error::EngineError,
    linear::{
        Gated, Norm, Residual,
        both::{Both, both},
        experts::{Experts, routed},
        gated,
    },
};

/// sum + scale · norm(ffn(norm(x))), where the sum is what the first half has made of the layer's input.
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) input: FfnInput,
    pub(crate) norm: Option<Norm>,
    pub(crate) weights: FfnWeights,
    pub(crate) residual: Residual,
}

/// What the half takes for x.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FfnInput {
    /// The sum.
    Sum,
    /// The layer's input: both halves stand side by side.
    Layer,
}

/// What is between the norms.
#[derive(Debug)]
pub(crate) enum FfnWeights {
    Gated(Gated),
    Experts(Box<Experts>),
    Both(Box<Both>),
}

impl FeedForward {
    /// The layer's input and the sum, both (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, cpu: Cpu<'_>, layer_input: &Tensor, sum: &Tensor) -> Result<Tensor, EngineError> {
        let (norm, residual) = (self.norm.as_ref(), &self.residual);
        let x = match self.input {
            FfnInput::Sum => sum,
            FfnInput::Layer => layer_input,
        };
        match &self.weights {
            FfnWeights::Gated(weights) => Ok(gated(cpu, x, norm, weights, residual, sum)?),
            FfnWeights::Experts(experts) => routed(cpu, x, norm, experts, residual, sum),
            FfnWeights::Both(weights) => both(cpu, x, norm, weights, residual, sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_kernels::lanes::Simd;
    use qmesh_models::{
        spec::{Activation, ExpertGroups, Routing, Scoring, SharedGate, Weighed, Weighting},
        tensor::TensorType,
    };
    use qmesh_team::Team;

    use super::*;
    use crate::{
        linear::{
            Linear,
            experts::{ExpertWeights, Router, Shared},
        },
        random::{noise, packed},
    };

    const HIDDEN: usize = 64;

    fn tensor(values: Vec<f32>, cols: usize) -> Tensor {
        let rows = values.len() / cols;
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    }

    /// A random product and its matrix, transposed.
    fn linear(outputs: usize, inputs: usize, seed: u64) -> (Linear, Tensor) {
        let values = noise(outputs * inputs, seed);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let matrix = packed(TensorType::F32, outputs, inputs, &bytes);
        (Linear { matrix, bias: None }, tensor(values, inputs).t().unwrap())
    }

    /// A random gated FFN, and what framework operations make of it.
    fn random_gated(inner: usize, seed: u64) -> (Gated, impl Fn(&Tensor) -> Tensor) {
        let ((gate, gate_t), (up, up_t), (down, down_t)) =
            (linear(inner, HIDDEN, seed), linear(inner, HIDDEN, seed + 1), linear(HIDDEN, inner, seed + 2));
        let oracle = move |x: &Tensor| {
            let gate = x.matmul(&gate_t).unwrap().silu().unwrap();
            (gate * x.matmul(&up_t).unwrap()).unwrap().matmul(&down_t).unwrap()
        };
        (Gated { activation: Activation::Silu, gate, up: Some(up), down }, oracle)
    }

    fn assert_near(ours: &Tensor, oracle: &Tensor) {
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error < 1e-4, "{error}");
    }

    fn half(weights: FfnWeights) -> (FeedForward, impl Fn(&Tensor) -> Tensor) {
        let gain = Tensor::from_vec(noise(HIDDEN, 2), HIDDEN, &Device::Cpu).unwrap();
        let norm = Some(Norm { gain: gain.to_vec1::<f32>().unwrap().into(), bias: None, eps: 1e-5 });
        let residual = Residual { norm: None, scale: 0.5 };
        (FeedForward { input: FfnInput::Sum, norm, weights, residual }, move |x| {
            candle_nn::ops::rms_norm(x, &gain, 1e-5).unwrap()
        })
    }

    #[test]
    fn the_half_is_what_plain_framework_operations_make_of_it() {
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = tensor(noise(3 * HIDDEN, 1), HIDDEN);
        let (weights, oracle) = random_gated(96, 3);
        let (ffn, norm) = half(FfnWeights::Gated(weights));
        assert_near(&ffn.forward(cpu, &x, &x).unwrap(), &(oracle(&norm(&x)) * 0.5 + &x).unwrap());
        // Beside the first half, it takes in what that takes in.
        let (sum, beside) = (tensor(noise(3 * HIDDEN, 9), HIDDEN), FeedForward { input: FfnInput::Layer, ..ffn });
        let expected = (oracle(&norm(&x)) * 0.5 + &sum).unwrap();
        assert_near(&beside.forward(cpu, &x, &sum).unwrap(), &expected);
    }

    #[test]
    fn experts_are_those_that_the_router_chooses_and_rows_do_not_know_each_other() {
        let (rows, count, used) = (9, 6, 2);
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = tensor(noise(rows * HIDDEN, 1), HIDDEN);
        let plain = Routing::plain;
        let groups = Some(ExpertGroups { count: 3, used: 1 });
        let routings = [
            (plain(Scoring::Softmax, Weighting::AsScored), None, SharedGate::Sigmoid),
            (plain(Scoring::SoftmaxOfUsed, Weighting::AsScored), None, SharedGate::None),
            (plain(Scoring::Sigmoid, Weighting::Normalised), Some(noise(count, 7)), SharedGate::None),
            (
                Routing { groups, ..plain(Scoring::Sigmoid, Weighting::AsScored) },
                Some(noise(count, 8)),
                SharedGate::None,
            ),
            (
                Routing { weighed: Weighed::Input, ..plain(Scoring::SqrtSoftplus, Weighting::Normalised) },
                None,
                SharedGate::Sigmoid,
            ),
        ];
        for (routing, choice_bias, gate) in routings {
            let routing = Routing { weight_scale: 1.5, ..routing };
            let (scores, scores_t) = linear(count, HIDDEN, 40);
            let (experts, oracles): (Vec<_>, Vec<_>) = (0..count).map(|e| random_gated(32, 3 * e as u64)).unzip();
            let (shared_router, shared_router_t) = linear(1, HIDDEN, 41);
            let (shared, shared_oracle) = random_gated(48, 50);
            let outer = (gate == SharedGate::Sigmoid).then_some(shared_router);
            let bias = choice_bias.clone().map(Into::into);
            let router = Router { scores, choice_bias: bias, expert_scales: None, used, routing: routing.clone() };
            let experts = Experts {
                router,
                weights: ExpertWeights::InMemory(experts),
                latent: None,
                shared: Some(Shared { gate: outer, expert: shared }),
            };
            let (ffn, norm) = half(FfnWeights::Experts(Box::new(experts)));
            let ours = ffn.forward(cpu, &x, &x).unwrap();

            let normed = norm(&x);
            let scores = normed.matmul(&scores_t).unwrap().to_vec2::<f32>().unwrap();
            for (row, scores) in scores.iter().enumerate() {
                let input = normed.narrow(0, row, 1).unwrap();
                let mut expected = x.narrow(0, row, 1).unwrap();
                for (e, weight) in weights(&routing, choice_bias.as_deref(), scores, used) {
                    let output = match routing.weighed {
                        Weighed::Input => oracles[e](&(&input * weight).unwrap()),
                        Weighed::Output => (oracles[e](&input) * weight).unwrap(),
                    };
                    expected = (expected + (output * 0.5).unwrap()).unwrap();
                }
                let shared = match gate {
                    SharedGate::None => shared_oracle(&input),
                    SharedGate::Sigmoid => {
                        let gate = candle_nn::ops::sigmoid(&input.matmul(&shared_router_t).unwrap()).unwrap();
                        shared_oracle(&input).broadcast_mul(&gate).unwrap()
                    }
                };
                expected = (expected + (shared * 0.5).unwrap()).unwrap();
                assert_near(&ours.narrow(0, row, 1).unwrap(), &expected);
                let one = x.narrow(0, row, 1).unwrap().contiguous().unwrap();
                let alone = ffn.forward(cpu, &one, &one).unwrap();
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&alone), bits(&ours.narrow(0, row, 1).unwrap()), "row {row} alone");
            }
        }
    }

    /// Experts and weights by the formulas, in f64.
    fn weights(routing: &Routing, bias: Option<&[f32]>, scores: &[f32], used: usize) -> Vec<(usize, f64)> {
        let scores: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
        let all: f64 = scores.iter().map(|score| score.exp()).sum();
        let affinity = |expert: usize| match routing.scoring {
            Scoring::Softmax | Scoring::SoftmaxOfUsed => scores[expert].exp() / all,
            Scoring::Sigmoid => 1.0 / (1.0 + (-scores[expert]).exp()),
            Scoring::SqrtSoftplus => scores[expert].exp().ln_1p().sqrt(),
        };
        let by = |expert: usize| affinity(expert) + bias.map_or(0.0, |bias| f64::from(bias[expert]));
        let best = |mut experts: Vec<usize>| {
            experts.sort_by(|a, b| by(*b).total_cmp(&by(*a)));
            experts
        };
        let open = match routing.groups {
            None => (0..scores.len()).collect(),
            Some(groups) => {
                let each = scores.len() / groups.count;
                let groups = (0..groups.count).map(|group| (group * each..(group + 1) * each).collect::<Vec<_>>());
                let score = |group: &Vec<usize>| best(group.clone())[..2].iter().map(|e| by(*e)).sum::<f64>();
                groups.max_by(|a, b| score(a).total_cmp(&score(b))).unwrap()
            }
        };
        let chosen = best(open)[..used].to_vec();
        let sum: f64 = match (routing.scoring, routing.weighting) {
            (Scoring::SoftmaxOfUsed, _) | (_, Weighting::Normalised) => chosen.iter().map(|e| affinity(*e)).sum(),
            (_, Weighting::AsScored) => 1.0,
        };
        let scale = f64::from(routing.weight_scale) / sum;
        chosen.into_iter().map(|expert| (expert, affinity(expert) * scale)).collect()
    }
}
