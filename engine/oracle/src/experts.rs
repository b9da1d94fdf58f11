//! A mixture of experts: Σ weight · expert(x) over the experts that the router gives the highest scores.

use candle_core::{Result, Tensor};
use candle_nn::ops::sigmoid;
use qmesh_models::spec::{ExpertsSpec, LayerIndex, LayerTensor, Weighting};

use crate::{
    error::OracleError,
    gated::Gated,
    linear::Linear,
    weights::{Weights, bias_of, of_layer},
};

/// The experts of a layer and what chooses between them.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    router: Linear,
    experts: Vec<Gated>,
    used: usize,
    weighting: Weighting,
    weight_scale: f32,
    /// The expert that every row goes through, and what weighs it by σ(router · x).
    shared: Option<(Linear, Gated)>,
}

impl Experts {
    /// The experts of `layer`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &ExpertsSpec,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{
            ExpertDownBiases, ExpertDowns, ExpertGateBiases, ExpertGates, ExpertUpBiases, ExpertUps, Router,
            RouterBias, SharedDown, SharedGate, SharedRouter, SharedUp,
        };
        let ExpertsSpec { count, used, inner, activation, bias, weighting, weight_scale, .. } = *spec;
        let hidden = weights.spec.hidden;
        let stack = |matrices, biases, [outputs, inputs]: [usize; 2]| {
            let biases = bias_of(layer, bias, biases);
            let biases = biases.map(|role| weights.matrix(role, count, outputs)).transpose()?;
            let all = weights.matrix(of_layer(layer, matrices), count * outputs, inputs)?;
            let input_terms = weights.input_terms(of_layer(layer, matrices))?;
            let one = |expert: usize| {
                let weight = all.narrow(0, expert * outputs, outputs)?;
                let bias = biases.as_ref().map(|biases| biases.get(expert)).transpose()?;
                Ok(Linear { weight, bias, input_terms })
            };
            (0..count).map(one).collect::<std::result::Result<Vec<_>, OracleError>>()
        };
        let gates = stack(ExpertGates, ExpertGateBiases, [inner, hidden])?;
        let ups = stack(ExpertUps, ExpertUpBiases, [inner, hidden])?;
        let downs = stack(ExpertDowns, ExpertDownBiases, [hidden, inner])?;
        let experts = gates.into_iter().zip(ups).zip(downs);
        let experts = experts.map(|((gate, up), down)| Gated { activation, gate, up, down }).collect();
        let plain = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        let shared = |inner| {
            let (gate, up) = (plain(SharedGate, [inner, hidden])?, plain(SharedUp, [inner, hidden])?);
            let expert = Gated { activation, gate, up, down: plain(SharedDown, [hidden, inner])? };
            Ok::<_, OracleError>((plain(SharedRouter, [1, hidden])?, expert))
        };
        let shared = spec.shared.map(shared).transpose()?;
        let router_bias = bias_of(layer, bias, RouterBias);
        let router = Linear::open(weights, of_layer(layer, Router), router_bias, [count, hidden])?;
        Ok(Self { router, experts, used, weighting, weight_scale, shared })
    }

    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scores = self.router.forward(x)?.to_vec2::<f32>()?; // (rows, experts)
        let mut of_expert = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (row, scores) in (0_u32..).zip(&scores) {
            for (expert, weight) in self.route(scores) {
                of_expert[expert].0.push(row);
                of_expert[expert].1.push(weight);
            }
        }
        let mut sum = x.zeros_like()?;
        for (expert, (rows, weights)) in self.experts.iter().zip(of_expert).filter(|(_, (rows, _))| !rows.is_empty()) {
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, x.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), x.device())?;
            let weighed = expert.forward(&x.index_select(&rows, 0)?)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&rows, &weighed, 0)?;
        }
        match &self.shared {
            Some((router, expert)) => sum + expert.forward(x)?.broadcast_mul(&sigmoid(&router.forward(x)?)?)?,
            None => Ok(sum),
        }
    }

    /// The experts with the highest scores and their weights; of equal scores the first.
    fn route(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let chosen = &order[..self.used.min(order.len())];
        let summed = match self.weighting {
            Weighting::OfAll => &order[..],
            Weighting::OfUsed => chosen,
        };
        // Less the largest, so that nothing overflows; it cancels out.
        let share = |expert: usize| f64::from(scores[expert] - scores[order[0]]).exp();
        let sum: f64 = summed.iter().map(|expert| share(*expert)).sum();
        let scale = f64::from(self.weight_scale);
        chosen.iter().map(|expert| (*expert, (scale * share(*expert) / sum) as f32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::spec::Activation;

    use super::*;

    fn linear(weight: &[[f32; 2]]) -> Linear {
        let weight = Tensor::new(weight.as_flattened(), &Device::Cpu).unwrap().reshape((weight.len(), 2)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    /// An expert that makes `factor` · silu(x₀) · x₁ of x, in both elements.
    fn expert(factor: f32) -> Gated {
        let (gate, up) = (linear(&[[1.0, 0.0], [0.0, 0.0]]), linear(&[[0.0, 1.0], [0.0, 0.0]]));
        Gated { activation: Activation::Silu, gate, up, down: linear(&[[factor, 0.0], [factor, 0.0]]) }
    }

    fn experts(weighting: Weighting, shared: Option<(Linear, Gated)>) -> Experts {
        // The scores of (1, x₁) are 0, ln 3 and −x₁.
        let router = linear(&[[0.0, 0.0], [3_f32.ln(), 0.0], [0.0, -1.0]]);
        let experts = [1.0, 10.0, 100.0].map(expert).to_vec();
        Experts { router, experts, used: 2, weighting, weight_scale: 2.0, shared }
    }

    /// The outputs for rows of (1, x₁), as factors of silu(1) · x₁.
    fn factors(experts: &Experts, x: &[f32]) -> Vec<f32> {
        let rows: Vec<[f32; 2]> = x.iter().map(|x| [1.0, *x]).collect();
        let y = experts.forward(&linear(&rows).weight).unwrap().to_vec2::<f32>().unwrap();
        let silu = 1.0 / (1.0 + (-1_f32).exp());
        y.iter().zip(x).map(|(y, x)| y[0] / (silu * x)).collect()
    }

    fn near(found: &[f32], expected: &[f32]) {
        let fits = found.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-5 * e.abs());
        assert!(fits && found.len() == expected.len(), "{found:?} for {expected:?}");
    }

    #[test]
    fn rows_go_through_the_experts_with_the_highest_scores() {
        // x₁ = 4: the scores' exponentials are 1, 3 and e^-4. x₁ = -ln 3: they are 1, 3 and 3.
        let rows = [4.0, -3_f32.ln()];
        let of_used = [2.0 * (0.25 + 0.75 * 10.0), 2.0 * (0.5 * 10.0 + 0.5 * 100.0)];
        near(&factors(&experts(Weighting::OfUsed, None), &rows), &of_used);
        let sum = 4.0 + (-4_f32).exp();
        let of_all = [2.0 * (1.0 + 30.0) / sum, 2.0 * (30.0 + 300.0) / 7.0];
        near(&factors(&experts(Weighting::OfAll, None), &rows), &of_all);
        // σ(x₁) of an expert that every row goes through, whatever the scale of the others.
        let shared = Some((linear(&[[0.0, 1.0]]), expert(1000.0)));
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let with_shared = [of_used[0] + 1000.0 * sigmoid(rows[0]), of_used[1] + 1000.0 * sigmoid(rows[1])];
        near(&factors(&experts(Weighting::OfUsed, shared), &rows), &with_shared);
    }
}
