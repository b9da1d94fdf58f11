//! Golden results: the file format, and how close to the reference is right.

use std::{fs, path::Path};

use serde::Deserialize;

/// What a golden file, and `coordinator eval`, hold.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Results {
    /// One entry per prompt.
    pub prompts: Vec<PromptResult>,
}

/// One prompt's results.
#[derive(Debug, Deserialize, PartialEq)]
pub struct PromptResult {
    /// Its name.
    pub id: String,
    /// Its ids, with the BOS that the model asks for.
    pub tokens: Vec<u32>,
    /// Log-probability of token i + 1 given those before it.
    pub token_logprobs: Vec<f64>,
    /// The most likely tokens after the prompt.
    pub last_top20: Vec<Candidate>,
    /// The greedy continuation.
    pub greedy: Vec<u32>,
    /// Top-1 minus top-2 logit at each greedy step.
    pub greedy_margin: Vec<f64>,
    /// Whether an end-of-generation token came.
    pub ended: bool,
    /// Digests of the logits of every row, prompt first (only `eval --digests` writes them).
    #[serde(default)]
    pub digests: Vec<String>,
}

/// A token that might have come.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f64,
    /// Its log-probability.
    pub logprob: f64,
}

/// How far results are from the reference.
#[derive(Debug, Default)]
pub struct Distance {
    /// Mean |Δ token_logprob| over all prompts.
    pub mean: f64,
    /// The largest |Δ token_logprob|.
    pub largest: f64,
    /// The largest |Δ logit| of the top 20, as a share of their range.
    pub logit_share: f64,
    /// The largest reference margin that a greedy step overturned, 0 when none did.
    pub overturned: f64,
    /// Greedy steps that were compared and equal.
    pub greedy_equal: usize,
}

/// Reads a golden file or the output of `eval`.
///
/// # Panics
/// When it is missing or malformed.
pub fn read(path: &Path) -> Results {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// How far `ours` is from `reference`; a greedy comparison ends at the first step that differs.
///
/// # Panics
/// When prompts or their tokens differ: those must be equal.
pub fn compare(reference: &Results, ours: &Results) -> Distance {
    let mut distance = Distance::default();
    assert_eq!(reference.prompts.len(), ours.prompts.len(), "every prompt is answered");
    let (mut sum, mut count) = (0.0, 0_u32);
    for (want, have) in reference.prompts.iter().zip(&ours.prompts) {
        assert_eq!(want.id, have.id);
        assert_eq!(want.tokens, have.tokens, "{}: tokens", want.id);
        assert_eq!(want.token_logprobs.len(), have.token_logprobs.len(), "{}: logprobs", want.id);
        for (a, b) in want.token_logprobs.iter().zip(&have.token_logprobs) {
            let difference = (a - b).abs();
            assert!(difference.is_finite(), "{}: {a} against {b}", want.id);
            sum += difference;
            count += 1;
            distance.largest = distance.largest.max(difference);
        }
        distance.logit_share = distance.logit_share.max(logit_share(want, have));
        compare_greedy(want, have, &mut distance);
    }
    distance.mean = sum / f64::from(count.max(1));
    distance
}

fn logit_share(want: &PromptResult, have: &PromptResult) -> f64 {
    let logits = || want.last_top20.iter().map(|c| c.logit);
    let range = logits().fold(f64::MIN, f64::max) - logits().fold(f64::MAX, f64::min);
    let ours = |id: u32| have.last_top20.iter().find(|c| c.id == id).map(|c| c.logit);
    // A token at the edge of the twenty may be just outside of ours.
    let differences = want.last_top20.iter().filter_map(|c| ours(c.id).map(|o| (c.logit - o).abs()));
    differences.fold(0.0, f64::max) / range.max(f64::MIN_POSITIVE)
}

fn compare_greedy(want: &PromptResult, have: &PromptResult, distance: &mut Distance) {
    for (step, &margin) in want.greedy_margin.iter().enumerate() {
        if want.greedy.get(step) != have.greedy.get(step) {
            distance.overturned = distance.overturned.max(margin);
            return;
        }
        distance.greedy_equal += 1;
    }
    assert_eq!(want.ended, have.ended, "{}: the end", want.id);
}
