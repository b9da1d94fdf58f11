//! The small model that drafts for all sequences, as the scheduler knows it.

use std::collections::BTreeSet;

use qmesh_net::SessionId;

use super::{acceptance::Acceptance, drafting::Verified};

/// What a model that drafts can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct DraftLimits {
    /// The most positions of one session.
    pub(crate) context: usize,
    /// Ids of its vocabulary, which may be fewer or more than the model's by some that no text has.
    pub(crate) vocab: usize,
    /// Tokens that it drafts at a time at most.
    pub(crate) most: usize,
}

/// A model that drafts.
#[derive(Debug)]
pub(crate) struct DraftModel {
    pub(crate) limits: DraftLimits,
    pub(crate) state: DraftModelState,
    /// Sessions that it has been told of.
    pub(crate) open: BTreeSet<SessionId>,
    /// Seconds from a question to its answer, for each drafted token.
    token_s: Option<f64>,
    /// Of all sequences: what a new one is expected to be like.
    acceptance: Acceptance,
    /// Tokens drafted and sent along.
    pub(crate) drafted: u64,
    /// Of these, the right ones.
    pub(crate) accepted: u64,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DraftModelState {
    Loading,
    Ready,
    /// Its process has ended.
    Gone,
}

impl DraftModel {
    pub(crate) fn new(limits: DraftLimits) -> Self {
        Self {
            limits,
            state: DraftModelState::Loading,
            open: BTreeSet::new(),
            token_s: None,
            acceptance: Acceptance::expecting(MODEL_SHARE),
            drafted: 0,
            accepted: 0,
        }
    }

    /// Seconds that a drafted token takes, once that was measured.
    pub(crate) fn token_s(&self) -> Option<f64> {
        self.token_s
    }

    /// What share of its drafts is right in sequences of which nothing is known yet.
    pub(crate) fn share(&self) -> f64 {
        self.acceptance.share()
    }

    /// Learns how long a drafted token took.
    pub(crate) fn learn(&mut self, token_s: f64) {
        let known = self.token_s.get_or_insert(token_s);
        *known += FRESH * (token_s.clamp(*known / OUTLIER, *known * OUTLIER) - *known);
    }

    /// Learns what came of its drafts.
    pub(crate) fn verified(&mut self, verified: Verified) {
        self.drafted += verified.drafted as u64;
        self.accepted += verified.right as u64;
        self.acceptance.verified(verified.drafted, verified.right);
    }
}

/// What share of a model's drafts is expected to be right, before any was tried.
const MODEL_SHARE: f64 = 0.6;
/// How much a new time counts beside what is known.
const FRESH: f64 = 0.2;
/// An answer counts as at most so many times slower or faster than those before it.
const OUTLIER: f64 = 2.0;
