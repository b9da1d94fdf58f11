//! Which experts a row goes through, and what they weigh.

use std::sync::Arc;

use qmesh_kernels::{
    lanes::Simd,
    math::{Exponentials, SumExponentials},
    real,
};
use qmesh_models::spec::{ExpertGroups, LEAST_SUM, Routing, Scoring, Weighting};

use super::Linear;

/// Chooses between experts.
#[derive(Debug)]
pub(crate) struct Router {
    /// The product that scores are made by.
    pub(crate) scores: Linear,
    /// What counts for the choice alone, per expert.
    pub(crate) choice_bias: Option<Arc<[f32]>>,
    /// What each expert's weights are multiplied by, where they are.
    pub(crate) expert_scales: Option<Arc<[f32]>>,
    /// Experts that a row goes through.
    pub(crate) used: usize,
    pub(crate) routing: Routing,
}

impl Router {
    /// The experts that a row with these scores goes through, from the first choice on, and their weights.
    pub(super) fn choose(&self, simd: Simd, scores: &[f32]) -> Vec<(usize, f32)> {
        let affinities = affinities(simd, self.routing.scoring, scores);
        let chosen = self.chosen(scores, &affinities);
        let mut weights: Vec<f32> = chosen.iter().map(|expert| affinities[*expert]).collect();
        if self.routing.scoring == Scoring::SoftmaxOfUsed {
            weights = softmax(simd, &weights);
        }
        let sum = match self.routing.weighting {
            Weighting::AsScored => 1.0,
            Weighting::Normalised => weights.iter().sum::<f32>().max(LEAST_SUM),
        };
        weights.iter_mut().for_each(|weight| *weight = *weight / sum * self.routing.weight_scale);
        if let Some(scales) = &self.expert_scales {
            weights.iter_mut().zip(&chosen).for_each(|(weight, expert)| *weight *= scales[*expert]);
        }
        chosen.into_iter().zip(weights).collect()
    }

    fn chosen(&self, scores: &[f32], affinities: &[f32]) -> Vec<usize> {
        let biased: Vec<f32>;
        let by = match (&self.choice_bias, self.routing.groups) {
            (Some(bias), _) => {
                biased = affinities.iter().zip(&bias[..]).map(|(affinity, bias)| affinity + bias).collect();
                &biased[..]
            }
            (None, Some(_)) => affinities,
            // Every scoring grows with the score, which is not rounded once more.
            (None, None) => scores,
        };
        let experts = 0..by.len();
        match self.routing.groups {
            None => highest(by, experts, self.used),
            Some(groups) => {
                let (open, each) = (best_groups(by, groups), by.len() / groups.count);
                highest(by, experts.filter(|expert| open.contains(&(expert / each))), self.used)
            }
        }
    }
}

/// x ← σ(x), for each element.
pub(crate) fn sigmoids(simd: Simd, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = -*x);
    Exponentials { x, largest: 0.0 }.run(simd);
    x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + *x));
}

/// What a scoring makes of all experts' scores.
fn affinities(simd: Simd, scoring: Scoring, scores: &[f32]) -> Vec<f32> {
    match scoring {
        Scoring::Softmax => softmax(simd, scores),
        Scoring::SoftmaxOfUsed => scores.to_vec(),
        Scoring::Sigmoid => {
            let mut affinities = scores.to_vec();
            sigmoids(simd, &mut affinities);
            affinities
        }
        Scoring::SqrtSoftplus => {
            let mut powers = scores.to_vec();
            Exponentials { x: &mut powers, largest: 0.0 }.run(simd);
            let softplus = |(score, power): (&f32, f32)| match *score {
                // Beyond this, ln(1 + e^x) is x in an f32.
                large if large > 20.0 => large,
                _ => real::ln(1.0 + f64::from(power)) as f32,
            };
            scores.iter().zip(powers).map(softplus).map(f32::sqrt).collect()
        }
    }
}

fn softmax(simd: Simd, scores: &[f32]) -> Vec<f32> {
    let sum = SumExponentials(scores).run(simd);
    let mut shares = scores.to_vec();
    Exponentials { x: &mut shares, largest: sum.largest }.run(simd);
    shares.iter_mut().for_each(|share| *share /= sum.sum);
    shares
}

/// The groups whose two highest values have the highest sums.
fn best_groups(values: &[f32], groups: ExpertGroups) -> Vec<usize> {
    let best_two = |group: &[f32]| highest(group, 0..group.len(), 2).into_iter().map(|at| group[at]).sum();
    let sums: Vec<f32> = values.chunks_exact(values.len() / groups.count).map(best_two).collect();
    highest(&sums, 0..sums.len(), groups.used)
}

/// Those `count` of `places` that have the highest values, from the highest down; of equal ones the first.
fn highest(values: &[f32], places: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = places.collect();
    places.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    places.truncate(count);
    places
}

#[cfg(test)]
mod tests {
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::random::random_matrix;

    fn router(routing: Routing, choice_bias: Option<&[f32]>, used: usize) -> Router {
        let scores = Linear { matrix: random_matrix(TensorType::F32, 16, 4).0, bias: None };
        Router { scores, choice_bias: choice_bias.map(Into::into), expert_scales: None, used, routing }
    }

    fn chosen(router: &Router, scores: &[f32]) -> Vec<usize> {
        router.choose(Simd::available()[0], scores).into_iter().map(|(expert, _)| expert).collect()
    }

    #[test]
    fn the_first_of_equal_ones_is_chosen() {
        let groups = Some(ExpertGroups { count: 4, used: 2 });
        for scoring in [Scoring::Softmax, Scoring::SoftmaxOfUsed, Scoring::Sigmoid, Scoring::SqrtSoftplus] {
            let plain = Routing::plain(scoring, Weighting::Normalised);
            assert_eq!(chosen(&router(plain.clone(), None, 3), &[1.0; 16]), [0, 1, 2]);
            assert_eq!(chosen(&router(plain.clone(), Some(&[0.5; 16]), 3), &[1.0; 16]), [0, 1, 2]);
            let grouped = Routing { groups, ..plain };
            assert_eq!(chosen(&router(grouped.clone(), None, 6), &[1.0; 16]), [0, 1, 2, 3, 4, 5]);
            // Equal sums in the last two groups, and a higher single score in the first.
            let scores = [1.6, -9.0, -9.0, -9.0, -9.0, -9.0, -9.0, -9.0, 1.0, 1.5, 0.0, 0.0, 1.5, 1.0, 0.0, 0.0];
            assert_eq!(chosen(&router(grouped, None, 3), &scores), [9, 12, 8]);
        }
    }

    #[test]
    fn affinities_that_rounding_makes_equal_are_still_told_apart_by_scores() {
        let sigmoid = Routing::plain(Scoring::Sigmoid, Weighting::AsScored);
        assert_eq!(chosen(&router(sigmoid, None, 1), &[40.0, 41.0]), [1]);
    }

    #[test]
    fn small_sums_are_divided_by_the_least_one() {
        let routing = Routing::plain(Scoring::Sigmoid, Weighting::Normalised);
        let weights = router(routing, None, 2).choose(Simd::available()[0], &[-30.0; 4]);
        let expected = (-30_f32).exp() / LEAST_SUM;
        assert!(weights.iter().all(|(_, weight)| (weight / expected - 1.0).abs() < 1e-5), "{weights:?}");
    }
}
