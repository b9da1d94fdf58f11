//! What is drafted for one sequence, and by whom: it is looked up in the sequence's own text, or a small model says it.
//!
//! What the model is asked for either waits for the answer, or does not: then the answer comes too late to be sent along, and only
//! shows how often the model is right, when the text has come as far. So its drafts are tried at no cost where they are not known
//! to pay.

use std::time::{Duration, Instant};

use super::{acceptance::Acceptance, lookup::Lookup};

/// The drafts of one sequence.
#[derive(Debug)]
pub(crate) struct Drafting {
    lookup: Lookup,
    by_text: Acceptance,
    by_model: Acceptance,
    /// Behind the ids that are sent: from where they are, and how many there were before a grammar cut them.
    sent: Option<(DraftSource, usize)>,
    /// The drafted ids that were sent, which may be none.
    drafted: Vec<u32>,
    /// Ids that the model was told.
    told: usize,
    asked: Option<Asked>,
    /// What the model has said, to be sent along with the last id.
    found: Option<ModelDraft>,
    /// What it has said of a text that was not known as far then.
    untold: Option<ModelDraft>,
    /// Ids there were when it was last asked.
    last_asked: usize,
    /// The model drafts nothing more for it.
    refused: bool,
}

/// Who drafts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DraftSource {
    /// The sequence's own text.
    Text,
    /// A small model.
    Model,
}

/// A question to the model that is not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Ids that there were.
    at: usize,
    since: Instant,
    /// The sequence waits until then.
    until: Option<Instant>,
}

/// Ids that the model says follow the first `at`.
#[derive(Debug)]
struct ModelDraft {
    at: usize,
    ids: Vec<u32>,
}

/// Whether a sequence waits for what the model drafts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Waiting {
    /// For so long at most.
    UpTo(Duration),
    /// It goes on meanwhile.
    Never,
}

/// Drafts that were verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verified {
    pub(crate) source: DraftSource,
    pub(crate) drafted: usize,
    pub(crate) right: usize,
}

impl Drafting {
    /// Nothing is drafted yet; of what the model says such a share is expected to be right.
    pub(crate) fn new(model_share: f64) -> Self {
        Self {
            lookup: Lookup::default(),
            by_text: Acceptance::expecting(TEXT_SHARE),
            by_model: Acceptance::expecting(model_share),
            sent: None,
            drafted: Vec::new(),
            told: 0,
            asked: None,
            found: None,
            untold: None,
            last_asked: 0,
            refused: false,
        }
    }

    /// How likely a draft of this source is right.
    pub(crate) fn share(&self, source: DraftSource) -> f64 {
        match source {
            DraftSource::Text => self.by_text.share(),
            DraftSource::Model => self.by_model.share(),
        }
    }

    /// Whether the text of these ids has been like this before.
    pub(crate) fn finds(&mut self, ids: &[u32]) -> bool {
        !self.lookup.draft(ids, 1).is_empty()
    }

    /// Where the next draft comes from.
    pub(crate) fn source(&self, ids: &[u32]) -> DraftSource {
        let found = self.found.as_ref().filter(|found| found.at == ids.len());
        if found.is_some() { DraftSource::Model } else { DraftSource::Text }
    }

    /// At most `most` ids that may follow `ids`.
    pub(crate) fn next(&mut self, ids: &[u32], most: usize) -> Vec<u32> {
        let found = self.found.take().filter(|found| found.at == ids.len());
        let (source, drafted) = match found {
            Some(found) => (DraftSource::Model, found.ids.into_iter().take(most).collect()),
            None => (DraftSource::Text, self.lookup.draft(ids, most)),
        };
        self.sent = Some((source, drafted.len()));
        drafted
    }

    /// What of it was sent along: a grammar may have cut it.
    pub(crate) fn sent(&mut self, drafted: Vec<u32>) {
        self.drafted = drafted;
    }

    /// What was sent along comes back, and is nothing any more.
    pub(crate) fn take_drafted(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.drafted)
    }

    /// What was sent along does not come back.
    pub(crate) fn forget(&mut self) {
        self.drafted.clear();
        self.sent = None;
    }

    /// Learns that the first `right` of the `drafted` tokens were right, and what the text, which has come as far as `ids`, says of
    /// what the model had said.
    pub(crate) fn verified(&mut self, ids: &[u32], drafted: usize, right: usize) -> Option<Verified> {
        self.judge(ids);
        let (source, planned) = self.sent.take()?;
        match source {
            DraftSource::Text => self.by_text.verified(drafted, right),
            // A sequence has waited for what a grammar refuses, too.
            DraftSource::Model => self.by_model.verified(drafted.max(planned.min(1)), right),
        }
        (drafted > 0).then_some(Verified { source, drafted, right })
    }

    /// Whether the sequence waits for the model.
    pub(crate) fn awaits(&self, now: Instant) -> bool {
        self.asked.is_some_and(|asked| asked.until.is_some_and(|until| now < until))
    }

    /// Whether a model with such a vocabulary may be asked: it owes no answer, and was not asked already what follows `ids`.
    pub(crate) fn may_ask(&mut self, ids: &[u32], vocab: usize) -> bool {
        self.refused |= ids[self.told..].iter().any(|id| *id as usize >= vocab);
        !self.refused && self.asked.is_none() && ids.len() > self.last_asked
    }

    /// Ids that the model has not been told.
    pub(crate) fn behind(&self, ids: &[u32]) -> usize {
        ids.len() - self.told
    }

    /// How many tokens there were since the model was last asked.
    pub(crate) fn since_asked(&self, ids: &[u32]) -> usize {
        ids.len() - self.last_asked
    }

    /// The model is asked what follows `ids`; what it has not been told of them, and after how many.
    pub(crate) fn ask<'a>(&mut self, now: Instant, ids: &'a [u32], waiting: Waiting) -> (usize, &'a [u32]) {
        let until = match waiting {
            Waiting::UpTo(time) => Some(now + time),
            Waiting::Never => None,
        };
        let from = self.told;
        (self.told, self.last_asked) = (ids.len(), ids.len());
        self.asked = Some(Asked { at: ids.len(), since: now, until });
        (from, &ids[from..])
    }

    /// The model has answered. How many seconds each of its tokens took, where the sequence waited for them.
    pub(crate) fn answered(&mut self, now: Instant, ids: &[u32], at: usize, draft: Vec<u32>) -> Option<f64> {
        let asked = self.asked.take_if(|asked| asked.at == at)?;
        let seconds = now.saturating_duration_since(asked.since).as_secs_f64();
        let waited_s = (asked.until.is_some() && !draft.is_empty()).then(|| seconds / draft.len() as f64);
        let draft = ModelDraft { at, ids: draft };
        if asked.until.is_some() && at == ids.len() {
            self.found = Some(draft);
        } else {
            self.untold = Some(draft);
            self.judge(ids);
        }
        waited_s
    }

    /// The model drafts nothing more for this sequence.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
        self.asked = None;
    }

    /// There is no model any more.
    pub(crate) fn model_gone(&mut self) {
        self.asked = None;
    }

    /// Compares what the model had said with the text, once that has come as far.
    fn judge(&mut self, ids: &[u32]) {
        let known = |draft: &mut ModelDraft| ids.len() >= draft.at + draft.ids.len();
        if let Some(draft) = self.untold.take_if(known) {
            let right = ids[draft.at..].iter().zip(&draft.ids).take_while(|(a, b)| a == b).count();
            self.by_model.verified(draft.ids.len(), right);
        }
    }
}

/// The most ids that the model may have to read where a sequence waits for its drafts.
pub(crate) const NEAR: usize = 32;
/// How many of the looked up tokens are expected to be right, before any was tried.
const TEXT_SHARE: f64 = 0.6;
