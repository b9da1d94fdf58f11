//! The feed-forward half of a block.

use candle_core::{Result, Tensor};
use qmesh_kernels::Cpu;

use crate::linear::{
    Gated, Norm, Residual,
    experts::{Experts, routed},
    gated,
};

/// x + scale · norm(ffn(norm(x))).
#[derive(Debug)]
pub(crate) struct FeedForward {
    pub(crate) norm: Option<Norm>,
    pub(crate) weights: FfnWeights,
    pub(crate) residual: Residual,
}

/// What is between the norms.
#[derive(Debug)]
pub(crate) enum FfnWeights {
    Gated(Gated),
    Experts(Experts),
}

impl FeedForward {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, cpu: Cpu<'_>, x: &Tensor) -> Result<Tensor> {
        let (norm, residual) = (self.norm.as_ref(), &self.residual);
        match &self.weights {
            FfnWeights::Gated(weights) => gated(cpu, x, norm, weights, residual),
            FfnWeights::Experts(experts) => routed(cpu, x, norm, experts, residual),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};
    use qmesh_kernels::{lanes::Simd, team::Team};
    use qmesh_models::{
        spec::{Activation, Weighting},
        tensor::TensorType,
    };

    use super::*;
    use crate::{
        linear::{Linear, experts::Shared},
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
        (FeedForward { norm, weights, residual }, move |x| candle_nn::ops::rms_norm(x, &gain, 1e-5).unwrap())
    }

    #[test]
    fn the_half_is_what_plain_framework_operations_make_of_it() {
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = tensor(noise(3 * HIDDEN, 1), HIDDEN);
        let (weights, oracle) = random_gated(96, 3);
        let (ffn, norm) = half(FfnWeights::Gated(weights));
        assert_near(&ffn.forward(cpu, &x).unwrap(), &(oracle(&norm(&x)) * 0.5 + &x).unwrap());
    }

    #[test]
    fn experts_are_those_that_the_router_chooses_and_rows_do_not_know_each_other() {
        let (rows, count, used) = (9, 5, 2);
        let team = Team::new(2).unwrap();
        let cpu = Cpu { simd: Simd::available()[0], team: &team };
        let x = tensor(noise(rows * HIDDEN, 1), HIDDEN);
        for (weighting, with_shared) in [(Weighting::OfAll, true), (Weighting::OfUsed, false)] {
            let (router, router_t) = linear(count, HIDDEN, 40);
            let (experts, oracles): (Vec<_>, Vec<_>) = (0..count).map(|e| random_gated(32, 3 * e as u64)).unzip();
            let (shared_router, shared_router_t) = linear(1, HIDDEN, 41);
            let (shared, shared_oracle) = random_gated(48, 50);
            let shared = with_shared.then_some(Shared { router: shared_router, expert: shared });
            let experts = Experts { router, experts, used, weighting, weight_scale: 1.5, shared };
            let (ffn, norm) = half(FfnWeights::Experts(experts));
            let ours = ffn.forward(cpu, &x).unwrap();

            let normed = norm(&x);
            let scores = normed.matmul(&router_t).unwrap();
            let probabilities = candle_nn::ops::softmax(&scores, D::Minus1).unwrap().to_vec2::<f32>().unwrap();
            for (row, probabilities) in probabilities.iter().enumerate() {
                let input = normed.narrow(0, row, 1).unwrap();
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
                let chosen: f32 = order[..used].iter().map(|e| probabilities[*e]).sum();
                let sum = match weighting {
                    Weighting::OfAll => 1.0,
                    Weighting::OfUsed => chosen,
                };
                let mut expected = x.narrow(0, row, 1).unwrap();
                for e in &order[..used] {
                    let weight = f64::from(0.5 * 1.5 * probabilities[*e] / sum);
                    expected = (expected + (oracles[*e](&input) * weight).unwrap()).unwrap();
                }
                if with_shared {
                    let gate = candle_nn::ops::sigmoid(&input.matmul(&shared_router_t).unwrap()).unwrap();
                    let shared = shared_oracle(&input).broadcast_mul(&gate).unwrap();
                    expected = (expected + (shared * 0.5).unwrap()).unwrap();
                }
                assert_near(&ours.narrow(0, row, 1).unwrap(), &expected);
                let alone = ffn.forward(cpu, &x.narrow(0, row, 1).unwrap().contiguous().unwrap()).unwrap();
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&alone), bits(&ours.narrow(0, row, 1).unwrap()), "row {row} alone");
            }
        }
    }
}
