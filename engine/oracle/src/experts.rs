//! A mixture of experts: Σ weight · expert(x) over the experts that the router gives the highest scores.

use candle_core::{Result, Tensor};
use candle_nn::ops::sigmoid;
use qmesh_models::spec::{
    Bias, ExpertForm, ExpertScales, ExpertsSpec, LEAST_SUM, LayerIndex, LayerTensor, Routing, Scoring, SharedExpert,
    SharedGate, Weighed, Weighting,
};

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
    routing: Routing,
    /// What each expert's affinity is raised by for the choice.
    choice_bias: Option<Vec<f32>>,
    /// What each expert's weights are multiplied by.
    expert_scales: Option<Vec<f32>>,
    /// What makes experts' rows of the layer's, and these of the former, where they are not the same.
    latent: Option<[Linear; 2]>,
    /// The expert that every row goes through, and what weighs it by σ(gate · x).
    shared: Option<(Option<Linear>, Gated)>,
}

impl Experts {
    /// The experts of `layer`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &ExpertsSpec,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{
            ChoiceBias, ExpertDownBiases, ExpertDowns, ExpertGateBiases, ExpertGateUps, ExpertGates, ExpertLatentDown,
            ExpertLatentUp, ExpertUpBiases, ExpertUps, Router, RouterBias,
        };
        let ExpertsSpec { count, used, inner, form, latent, activation, bias, ref routing, shared } = *spec;
        let (hidden, width) = (weights.spec.hidden, latent.unwrap_or(weights.spec.hidden));
        let stack = Stack { weights, layer, count, bias };
        let one = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        let gates_and_ups: Vec<(Linear, Option<Linear>)> = match form {
            ExpertForm::Gated => {
                let gates = stack.open(ExpertGates, ExpertGateBiases, [inner, width])?;
                let ups = stack.open(ExpertUps, ExpertUpBiases, [inner, width])?;
                gates.into_iter().zip(ups.into_iter().map(Some)).collect()
            }
            ExpertForm::GatedTogether => {
                let both = stack.open(ExpertGateUps, ExpertGateBiases, [2 * inner, width])?;
                let half = |both: &Linear, first| {
                    Ok::<_, OracleError>(Linear { weight: both.weight.narrow(0, first, inner)?, ..both.clone() })
                };
                let halves = both.iter().map(|both| Ok((half(both, 0)?, Some(half(both, inner)?))));
                halves.collect::<std::result::Result<_, OracleError>>()?
            }
            ExpertForm::Plain => {
                let ups = stack.open(ExpertUps, ExpertUpBiases, [inner, width])?;
                ups.into_iter().map(|up| (up, None)).collect()
            }
        };
        let downs = stack.open(ExpertDowns, ExpertDownBiases, [width, inner])?;
        let experts = gates_and_ups.into_iter().zip(downs);
        let experts = experts.map(|((gate, up), down)| Gated { activation, gate, up, down }).collect();
        let latent = latent.map(|width| {
            Ok::<_, OracleError>([one(ExpertLatentDown, [width, hidden])?, one(ExpertLatentUp, [hidden, width])?])
        });
        let choice_bias = bias_of(layer, routing.choice_bias, ChoiceBias);
        let choice_bias = choice_bias.map(|role| Ok::<_, OracleError>(weights.vector(role, count)?.to_vec1::<f32>()?));
        let expert_scales = match routing.expert_scales {
            ExpertScales::None => None,
            ExpertScales::Learned => {
                Some(weights.vector(of_layer(layer, LayerTensor::ExpertScales), count)?.to_vec1::<f32>()?)
            }
        };
        let router_bias = bias_of(layer, bias, RouterBias);
        Ok(Self {
            router: Linear::open(weights, of_layer(layer, Router), router_bias, [count, hidden])?,
            experts,
            used,
            routing: routing.clone(),
            choice_bias: choice_bias.transpose()?,
            expert_scales,
            latent: latent.transpose()?,
            shared: shared.map(|shared| open_shared(weights, layer, spec, shared)).transpose()?,
        })
    }

    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_scored(x, x)
    }

    /// The same, where the router takes other rows.
    pub(crate) fn forward_scored(&self, x: &Tensor, scored: &Tensor) -> Result<Tensor> {
        let scores = self.router.forward(scored)?.to_vec2::<f32>()?; // (rows, experts)
        let mut of_expert = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (row, scores) in (0_u32..).zip(&scores) {
            for (expert, weight) in self.route(scores) {
                of_expert[expert].0.push(row);
                of_expert[expert].1.push(weight);
            }
        }
        let narrow = match &self.latent {
            Some([down, _]) => down.forward(x)?,
            None => x.clone(),
        };
        let mut sum = narrow.zeros_like()?;
        for (expert, (rows, weights)) in self.experts.iter().zip(of_expert).filter(|(_, (rows, _))| !rows.is_empty()) {
            let count = rows.len();
            let rows = Tensor::from_vec(rows, count, x.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), x.device())?;
            let input = narrow.index_select(&rows, 0)?;
            let output = match self.routing.weighed {
                Weighed::Input => expert.forward(&input.broadcast_mul(&weights)?)?,
                Weighed::Output => expert.forward(&input)?.broadcast_mul(&weights)?,
            };
            sum = sum.index_add(&rows, &output, 0)?;
        }
        let sum = match &self.latent {
            Some([_, up]) => up.forward(&sum)?,
            None => sum,
        };
        match &self.shared {
            Some((Some(gate), expert)) => sum + expert.forward(x)?.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?,
            Some((None, expert)) => sum + expert.forward(x)?,
            None => Ok(sum),
        }
    }

    /// The experts that a row with these scores goes through, and their weights.
    fn route(&self, scores: &[f32]) -> Vec<(usize, f32)> {
        let affinities = affinities(self.routing.scoring, scores);
        let bias = |expert: usize| self.choice_bias.as_ref().map_or(0.0, |bias| f64::from(bias[expert]));
        let mut by: Vec<f64> = affinities.iter().enumerate().map(|(expert, a)| a + bias(expert)).collect();
        if let Some(groups) = self.routing.groups {
            let each = by.len() / groups.count;
            let score = |group: &[f64]| ranked(group)[..2].iter().map(|at| group[*at]).sum::<f64>();
            let closed = ranked(&by.chunks(each).map(score).collect::<Vec<_>>()).split_off(groups.used);
            closed.into_iter().for_each(|group| by[group * each..][..each].fill(f64::NEG_INFINITY));
        }
        let chosen = ranked(&by).into_iter().take(self.used);
        let mut weights: Vec<(usize, f64)> = chosen.map(|expert| (expert, affinities[expert])).collect();
        if self.routing.scoring == Scoring::SoftmaxOfUsed {
            let shares = softmax(&weights.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
            weights.iter_mut().zip(shares).for_each(|((_, weight), share)| *weight = share);
        }
        let sum = match self.routing.weighting {
            Weighting::AsScored => 1.0,
            Weighting::Normalised => weights.iter().map(|(_, weight)| weight).sum::<f64>().max(f64::from(LEAST_SUM)),
        };
        let scale = |expert: usize| {
            let own = self.expert_scales.as_ref().map_or(1.0, |scales| f64::from(scales[expert]));
            own * f64::from(self.routing.weight_scale) / sum
        };
        weights.into_iter().map(|(expert, weight)| (expert, (weight * scale(expert)) as f32)).collect()
    }
}

/// Opens matrices that lie one below the other.
struct Stack<'a> {
    weights: &'a Weights<'a>,
    layer: LayerIndex,
    count: usize,
    /// Whether they have biases.
    bias: Bias,
}

impl Stack<'_> {
    fn open(
        &self,
        matrices: LayerTensor,
        biases: LayerTensor,
        [outputs, inputs]: [usize; 2],
    ) -> std::result::Result<Vec<Linear>, OracleError> {
        let Self { weights, layer, count, bias } = *self;
        let biases = bias_of(layer, bias, biases);
        let biases = biases.map(|role| weights.matrix(role, count, outputs)).transpose()?;
        let all = weights.matrix(of_layer(layer, matrices), count * outputs, inputs)?;
        let input_terms = weights.input_terms(of_layer(layer, matrices))?;
        let one = |expert: usize| {
            let weight = all.narrow(0, expert * outputs, outputs)?;
            let bias = biases.as_ref().map(|biases| biases.get(expert)).transpose()?;
            Ok(Linear { weight, bias, input_terms })
        };
        (0..count).map(one).collect()
    }
}

/// The expert that every row goes through, and its gate.
fn open_shared(
    weights: &Weights<'_>,
    layer: LayerIndex,
    experts: &ExpertsSpec,
    SharedExpert { inner, activation, gate }: SharedExpert,
) -> std::result::Result<(Option<Linear>, Gated), OracleError> {
    use LayerTensor::{SharedDown, SharedGate as GateOfShared, SharedRouter, SharedUp};
    let hidden = weights.spec.hidden;
    let one = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
    let outer = match gate {
        SharedGate::None => None,
        SharedGate::Sigmoid => Some(one(SharedRouter, [1, hidden])?),
    };
    let up = one(SharedUp, [inner, hidden])?;
    let (gate, up) = match experts.form {
        ExpertForm::Gated | ExpertForm::GatedTogether => (one(GateOfShared, [inner, hidden])?, Some(up)),
        ExpertForm::Plain => (up, None),
    };
    Ok((outer, Gated { activation, gate, up, down: one(SharedDown, [hidden, inner])? }))
}

/// What a scoring makes of all experts' scores.
fn affinities(scoring: Scoring, scores: &[f32]) -> Vec<f64> {
    let scores: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
    match scoring {
        Scoring::Softmax => softmax(&scores),
        Scoring::SoftmaxOfUsed => scores,
        Scoring::Sigmoid => scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
        Scoring::SqrtSoftplus => scores.iter().map(|score| score.exp().ln_1p().sqrt()).collect(),
    }
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// The places of `values` from the highest down; of equal ones the first comes first.
fn ranked(values: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    places
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::spec::{Activation, ExpertGroups};

    use super::*;

    fn linear(weight: &[[f32; 2]]) -> Linear {
        let weight = Tensor::new(weight.as_flattened(), &Device::Cpu).unwrap().reshape((weight.len(), 2)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    /// An expert that makes `factor` · silu(x₀) · x₁ of x, in both elements.
    fn expert(factor: f32) -> Gated {
        let (gate, up) = (linear(&[[1.0, 0.0], [0.0, 0.0]]), linear(&[[0.0, 1.0], [0.0, 0.0]]));
        Gated { activation: Activation::Silu, gate, up: Some(up), down: linear(&[[factor, 0.0], [factor, 0.0]]) }
    }

    fn experts(routing: Routing, shared: Option<(Option<Linear>, Gated)>) -> Experts {
        // The scores of (1, x₁) are 0, ln 3 and −x₁.
        let router = linear(&[[0.0, 0.0], [3_f32.ln(), 0.0], [0.0, -1.0]]);
        let experts = [1.0, 10.0, 100.0].map(expert).to_vec();
        let routing = Routing { weight_scale: 2.0, ..routing };
        Experts { router, experts, used: 2, routing, choice_bias: None, expert_scales: None, latent: None, shared }
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
        let softmax_of_used = || Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored);
        near(&factors(&experts(softmax_of_used(), None), &rows), &of_used);
        let normalised = Routing::plain(Scoring::Softmax, Weighting::Normalised);
        near(&factors(&experts(normalised, None), &rows), &of_used);
        let sum = 4.0 + (-4_f32).exp();
        let of_all = [2.0 * (1.0 + 30.0) / sum, 2.0 * (30.0 + 300.0) / 7.0];
        let softmax = Routing::plain(Scoring::Softmax, Weighting::AsScored);
        near(&factors(&experts(softmax, None), &rows), &of_all);
        // σ(x₁) of an expert that every row goes through, whatever the scale of the others.
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let shared = |gate| Some((gate, expert(1000.0)));
        let gated = [of_used[0] + 1000.0 * sigmoid(rows[0]), of_used[1] + 1000.0 * sigmoid(rows[1])];
        near(&factors(&experts(softmax_of_used(), shared(Some(linear(&[[0.0, 1.0]])))), &rows), &gated);
        near(&factors(&experts(softmax_of_used(), shared(None)), &rows), &of_used.map(|y| y + 1000.0));
    }

    #[test]
    fn experts_are_scored_alone_and_biases_choose_without_weighing() {
        // σ of the scores 0, ln 3 and -4 is 1/2, 3/4 and e^-4 / (1 + e^-4).
        let (row, small) = ([4.0], (-4_f32).exp() / (1.0 + (-4_f32).exp()));
        let sigmoid = |weighting| Routing::plain(Scoring::Sigmoid, weighting);
        near(&factors(&experts(sigmoid(Weighting::AsScored), None), &row), &[2.0 * (0.5 + 7.5)]);
        near(&factors(&experts(sigmoid(Weighting::Normalised), None), &row), &[2.0 * (0.4 + 6.0)]);
        let biased =
            Experts { choice_bias: Some(vec![0.0, 0.0, 1.0]), ..experts(sigmoid(Weighting::Normalised), None) };
        near(&factors(&biased, &row), &[2.0 * (7.5 + 100.0 * small) / (0.75 + small)]);
        let softplus = experts(Routing::plain(Scoring::SqrtSoftplus, Weighting::AsScored), None);
        near(&factors(&softplus, &row), &[2.0 * (2_f32.ln().sqrt() + 10.0 * 4_f32.ln().sqrt())]);
        // Sums below the least one that is divided by.
        let low = Linear {
            bias: Some(Tensor::new(&[-20_f32; 3], &Device::Cpu).unwrap()),
            ..experts(sigmoid(Weighting::Normalised), None).router
        };
        let low = Experts { router: low, ..experts(sigmoid(Weighting::Normalised), None) };
        near(&factors(&low, &row), &[2.0 * (1.0 + 30.0) * (-20_f32).exp() / LEAST_SUM]);
    }

    #[test]
    fn groups_are_chosen_by_their_best_two_and_the_first_of_equal_ones() {
        let groups = Some(ExpertGroups { count: 3, used: 1 });
        let routing = |groups| Routing { groups, ..Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored) };
        let chosen = |groups, scores: &[f32]| {
            let experts = experts(routing(groups), None);
            experts.route(scores).into_iter().map(|(expert, _)| expert).collect::<Vec<_>>()
        };
        // The highest score is in a group whose two best have a lower sum.
        let scores = [9.0, 0.0, 0.0, 5.0, 6.0, -9.0, 5.0, 5.0, 5.0];
        assert_eq!(chosen(None, &scores), [0, 4]);
        assert_eq!(chosen(groups, &scores), [4, 3]);
        assert_eq!(chosen(groups, &[1.0; 9]), [0, 1]);
        assert_eq!(chosen(Some(ExpertGroups { count: 3, used: 2 }), &scores), [4, 3]);
    }

    #[test]
    fn weights_may_be_factors_on_inputs() {
        let routing = Routing::plain(Scoring::Sigmoid, Weighting::AsScored);
        let one = Experts { used: 1, ..experts(Routing { weighed: Weighed::Input, ..routing }, None) };
        // The expert's input is (1, 4) times 2 · 3/4.
        let silu = |x: f32| x / (1.0 + (-x).exp());
        near(&factors(&one, &[4.0]), &[10.0 * silu(1.5) * 1.5 / silu(1.0)]);
    }
}
