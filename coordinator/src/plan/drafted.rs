//! What a small model that drafts is expected to bring one stream.
//!
//! With k drafted tokens, each of which is right with the probability a where those before it were, a step of k + 1 rows gives
//! (1 − aᵏ⁺¹) / (1 − a) tokens, and takes its time on stages and links and that of drafting k tokens one after the other. How often
//! drafts are right depends on both models and on the text, and nobody knows it beforehand: it is assumed.

use serde::Serialize;

use super::{Plan, PlanInput, prediction::round_s};

/// What a model that drafts is expected to bring.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DraftPrediction {
    /// The model that drafts.
    pub model: String,
    /// Memory that it takes on the coordinator's machine at most.
    pub memory_bytes: u64,
    /// What a drafted token takes, in milliseconds.
    pub token_ms: f64,
    /// The share of drafted tokens that is assumed to be right where those before them were.
    pub assumed_acceptance: f64,
    /// How many tokens are best drafted at a time.
    pub drafts: usize,
    /// Of one stream with so many drafts.
    pub tokens_per_s: f64,
    /// Of one stream without.
    pub alone_tokens_per_s: f64,
    /// Whether that is worth it.
    pub pays: bool,
}

/// A model that drafts, as the planner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafting {
    /// Its name.
    pub model: String,
    /// Memory that it takes at most.
    pub memory_bytes: u64,
    /// Seconds that a drafted token takes.
    pub token_s: f64,
    /// Tokens that it drafts at a time at most.
    pub most: usize,
}

/// What `drafting` brings one stream of `plan`; `None` where some worker's speed is not known.
pub fn predict_drafts(input: &PlanInput<'_>, plan: &Plan, drafting: &Drafting) -> Option<DraftPrediction> {
    let rate = |drafts: usize| {
        let expected = (1.0 - ACCEPTANCE.powi(drafts as i32 + 1)) / (1.0 - ACCEPTANCE);
        Some(expected / (round_s(input, plan, 1 + drafts)? + drafts as f64 * drafting.token_s))
    };
    let alone = rate(0)?;
    let rates = (1..=drafting.most).filter_map(|drafts| Some((drafts, rate(drafts)?)));
    let (drafts, tokens_per_s) = rates.max_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(DraftPrediction {
        model: drafting.model.clone(),
        memory_bytes: drafting.memory_bytes,
        token_ms: drafting.token_s * 1e3,
        assumed_acceptance: ACCEPTANCE,
        drafts,
        tokens_per_s,
        alone_tokens_per_s: alone,
        pays: tokens_per_s > WORTH * alone,
    })
}

/// What is assumed of a draft model of the same family, on text of many kinds.
const ACCEPTANCE: f64 = 0.7;
/// How many times as fast a stream must be expected to become.
const WORTH: f64 = 1.05;
