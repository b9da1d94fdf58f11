//! The words of a shard's work: a step is the rows of several sessions that are computed together, and leaves activations
//! or samples.

use std::collections::BTreeMap;

use crate::error::EngineError;

/// One micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The slices of sessions, in the order of their rows; a session appears at most once.
    pub sequences: Vec<SequenceRows>,
    /// Token id of each row, of all sequences in order; always carried.
    pub ids: Vec<u32>,
    /// Activation (rows, hidden), row-major; `None` exactly where the shard embeds.
    pub hidden: Option<Vec<f32>>,
    /// What may follow some of the wanted rows, by session and position: any token may follow the others. Only the last
    /// stage looks at it.
    pub allowed: BTreeMap<(u64, usize), TokenSet>,
}

/// A set of tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TokenSet(Vec<u8>);

impl TokenSet {
    /// The tokens whose bits are set, the lowest of a byte first. Those beyond the last byte are not in the set.
    pub fn of_bits(bits: Vec<u8>) -> Self {
        Self(bits)
    }

    /// Whether a token is in the set.
    pub fn contains(&self, token: u32) -> bool {
        self.0.get(token as usize / 8).is_some_and(|byte| byte >> (token % 8) & 1 == 1)
    }

    /// The token itself if it is in the set, else the next one below `vocab` that is, or the first one of all: what a
    /// made-up model says that must not say `token`.
    pub fn nearest(&self, token: u32, vocab: u32) -> Option<u32> {
        (token..vocab).chain(0..token.min(vocab)).find(|token| self.contains(*token))
    }
}

impl Step {
    /// The rows that the last stage samples after, in order.
    pub fn wanted_rows(&self) -> Vec<WantedRow> {
        let mut wanted = Vec::new();
        let mut start = 0;
        for &SequenceRows { session, position, rows, wants } in &self.sequences {
            let end = start + rows;
            let first = match wants {
                Wants::None => end,
                Wants::Last => end.saturating_sub(1).max(start),
                Wants::All => start,
            };
            wanted.extend((first..end).map(|row| {
                let target = self.ids[..end.min(self.ids.len())].get(row + 1).copied();
                WantedRow { row, session, position: position + row - start, target }
            }));
            start = end;
        }
        wanted
    }
}

/// Consecutive rows of one session. After the step the session holds `position + rows` positions: rollback is implicit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SequenceRows {
    /// The session.
    pub session: u64,
    /// Position of the first row.
    pub position: usize,
    /// Rows, at least one.
    pub rows: usize,
    /// Which rows the last stage samples after.
    pub wants: Wants,
}

/// A row that the last stage samples after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WantedRow {
    /// Its place among the step's rows.
    pub row: usize,
    /// Whose it is.
    pub session: u64,
    /// Its position in the session.
    pub position: usize,
    /// The session's next id, where this step has it.
    pub target: Option<u32>,
}

/// The first positions of an open session, for another one to begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// Whose.
    pub session: u64,
    /// How many: a multiple of `qmesh_models::footprint::PAGE_POSITIONS`, for room in caches is counted by so many.
    pub positions: usize,
}

/// Which rows of a sequence the last stage samples after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wants {
    /// None: a prompt chunk that is not the last.
    None,
    /// The last one.
    Last,
    /// All: drafts to verify, or log-probabilities of a given text.
    All,
}

/// What a step leaves a stage as.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    /// From every stage but the last: the activation (rows, hidden), row-major.
    Hidden(Vec<f32>),
    /// From the last stage: one entry per wanted row, in the order of the rows; or why nothing could be sampled after a
    /// row, which is the fault of its session alone.
    Sampled(Vec<Result<SampledRow, EngineError>>),
}

/// The token sampled after one row, and what was asked for beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The sampled id.
    pub token: u32,
    /// Its log-probability under the raw logits (before penalties, filters and temperature) of what may follow.
    pub logprob: f32,
    /// Log-probability of the session's next id in this step, among what may follow; NaN for the last row of a sequence.
    pub target_logprob: f32,
    /// First 8 bytes (little-endian) of BLAKE3 of the raw logits' f32 bytes; 0 unless asked for.
    pub digest: u64,
    /// The most likely ids of those that may follow, under the raw logits, best first, ties by lower id: (id, logit,
    /// log-probability).
    pub top: Vec<(u32, f32, f32)>,
}
