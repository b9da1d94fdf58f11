//! A step as the shard sees it: the rows of several sessions that are computed together, and what comes out.

/// One micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The slices of sessions, in the order of their rows; a session appears at most once.
    pub sequences: Vec<SequenceRows>,
    /// Token id of each row, of all sequences in order; always carried.
    pub ids: Vec<u32>,
    /// Activation (rows, hidden), row-major; `None` exactly where the shard embeds.
    pub hidden: Option<Vec<f32>>,
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
    /// From the last stage: one entry per wanted row, in the order of the rows.
    Sampled(Vec<SampledRow>),
}

/// The token sampled after one row, and what was asked for beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The sampled id.
    pub token: u32,
    /// Its log-probability under the raw logits (before penalties, filters and temperature).
    pub logprob: f32,
    /// Log-probability under the raw logits of the session's next id in this step; NaN for the last row of a sequence.
    pub target_logprob: f32,
    /// First 8 bytes (little-endian) of BLAKE3 of the raw logits' f32 bytes; 0 unless asked for.
    pub digest: u64,
    /// The most likely ids under the raw logits, best first, ties by lower id: (id, logit, log-probability).
    pub top: Vec<(u32, f32, f32)>,
}
