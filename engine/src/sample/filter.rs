//! Filters that may leave the likeliest token out: typical sampling and XTC, as llama.cpp does them.

use qmesh_kernels::{
    lanes::Simd,
    math::{Exponentials, SumExponentials},
};

use super::by_logit;

/// Keeps the candidates whose surprise (-ln p) is nearest to the expected one (the entropy), as many as together have the
/// probability `share`; comes and goes best first. (Meister et al., 2022: locally typical sampling.)
pub(super) fn typical(simd: Simd, mut candidates: Vec<(u32, f32)>, share: f32) -> Vec<(u32, f32)> {
    let (probabilities, log_probabilities) = distribution(simd, &candidates);
    // What is out of reach has no part in it.
    let terms = probabilities.iter().zip(&log_probabilities).filter(|(_, log)| log.is_finite());
    let entropy = terms.fold(0.0, |sum, (p, log)| sum - f64::from(*p) * f64::from(*log));
    let distance = |at: usize| (-f64::from(log_probabilities[at]) - entropy).abs();
    let mut order: Vec<usize> = (0..candidates.len()).filter(|at| log_probabilities[*at].is_finite()).collect();
    order.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
    let mut reached = 0.0;
    let last = order.iter().position(|at| {
        reached += probabilities[*at];
        reached > share
    });
    order.truncate(last.map_or(order.len(), |last| last + 1));
    order.sort_unstable();
    candidates = order.into_iter().map(|at| candidates[at]).collect();
    candidates
}

/// Leaves out those candidates that have at least the probability `threshold`, but for the least likely of them. (XTC:
/// "exclude top choices".)
pub(super) fn without_top_choices(simd: Simd, mut candidates: Vec<(u32, f32)>, threshold: f32) -> Vec<(u32, f32)> {
    candidates.sort_unstable_by(by_logit);
    let (probabilities, log_probabilities) = distribution(simd, &candidates);
    let within = probabilities.iter().zip(&log_probabilities);
    let top = within.take_while(|(p, log)| **p >= threshold && log.is_finite()).count();
    candidates.drain(..top.saturating_sub(1));
    candidates
}

/// Probabilities and their logarithms.
fn distribution(simd: Simd, candidates: &[(u32, f32)]) -> (Vec<f32>, Vec<f32>) {
    let logits: Vec<f32> = candidates.iter().map(|(_, x)| *x).collect();
    let sum = SumExponentials(&logits).run(simd);
    let log_probabilities = logits.iter().map(|x| sum.log_probability(*x)).collect();
    let mut probabilities = logits;
    Exponentials { x: &mut probabilities, largest: sum.largest }.run(simd);
    probabilities.iter_mut().for_each(|p| *p /= sum.sum);
    (probabilities, log_probabilities)
}
