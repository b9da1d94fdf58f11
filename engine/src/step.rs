//! The words of a shard's work: a step is the rows of several sessions that are computed together, and leaves activations
//! or samples.

use std::{collections::BTreeMap, ops::Range};

use crate::error::EngineError;

/// One micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// The slices of sessions, in the order of their rows; a session appears at most once.
    pub sequences: Vec<SequenceRows>,
    /// Token id of each row, of all sequences in order; always carried.
    pub ids: Vec<u32>,
    /// Activation (rows, hidden and what later layers take in beside it: [`qmesh_models::spec::ModelSpec::row_width`]), row-major; `None` exactly where the shard embeds.
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
    /// The rows that the last stage adds up, for each sequence that wants it, in order.
    pub fn summed_rows(&self) -> Vec<SummedRows> {
        let (mut summed, mut start) = (Vec::new(), 0);
        for &SequenceRows { session, position, rows, wants } in &self.sequences {
            let end = start + rows;
            let first = match wants {
                Wants::None | Wants::Last | Wants::All => None,
                Wants::Sum => Some(start),
                Wants::SumLast => Some(end.saturating_sub(1).max(start)),
            };
            summed.extend(first.map(|first| SummedRows {
                session,
                rows: first..end,
                position: position + first - start,
            }));
            start = end;
        }
        summed
    }

    /// The rows that the last stage samples after, in order.
    pub fn wanted_rows(&self) -> Vec<WantedRow> {
        let mut wanted = Vec::new();
        let mut start = 0;
        for &SequenceRows { session, position, rows, wants } in &self.sequences {
            let end = start + rows;
            let first = match wants {
                Wants::None | Wants::Sum | Wants::SumLast => end,
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
    /// What the last stage makes of them.
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

/// Rows of a sequence that the last stage adds up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SummedRows {
    /// Whose they are.
    pub session: u64,
    /// Their places among the step's rows.
    pub rows: Range<usize>,
    /// The first one's position in the session.
    pub position: usize,
}

/// The first positions of an open session, for another one to begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// Whose.
    pub session: u64,
    /// How many: a multiple of `qmesh_models::footprint::PAGE_POSITIONS`, for room in caches is counted by so many.
    pub positions: usize,
}

/// What the last stage makes of a sequence's rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wants {
    /// Nothing: a prompt chunk that is not the last.
    None,
    /// A sample after the last one.
    Last,
    /// A sample after each: drafts to verify, or log-probabilities of a given text.
    All,
    /// Their sum after the final norm.
    Sum,
    /// The last one after the final norm, as a sum of one.
    SumLast,
}

/// What a step leaves a stage as.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    /// From every stage but the last: the activation (rows, hidden), row-major.
    Hidden(Vec<f32>),
    /// From the last stage.
    Sampled(Samples),
}

/// What the last stage makes of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// One entry per wanted row, in the order of the rows; or why nothing could be sampled after a row, which is the fault of its
    /// session alone.
    pub rows: Vec<Result<SampledRow, EngineError>>,
    /// One entry per sequence whose rows are summed, in the order of the sequences; or why they could not be, which is the fault of
    /// that session alone.
    pub sums: Vec<Result<RowSum, EngineError>>,
}

/// The sum of rows after the final norm, in units of 2⁻³² of each value. Integers add up to the same sum in any order, so that
/// the sums of a prompt's chunks add up to the same one however it was cut.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RowSum(pub Vec<i64>);

impl From<Vec<Result<SampledRow, EngineError>>> for Samples {
    /// Samples without sums.
    fn from(rows: Vec<Result<SampledRow, EngineError>>) -> Self {
        Self { rows, sums: Vec::new() }
    }
}

impl Samples {
    /// The sessions of `step` that something could not be made of, each with the first reason.
    pub fn failures(&self, step: &Step) -> Vec<(u64, EngineError)> {
        let rows = step.wanted_rows().into_iter().map(|wanted| wanted.session);
        let rows = rows.zip(self.rows.iter().map(|row| row.as_ref().err()));
        let sums = step.summed_rows().into_iter().map(|summed| summed.session);
        let sums = sums.zip(self.sums.iter().map(|sum| sum.as_ref().err()));
        let mut failures = BTreeMap::new();
        for (session, error) in rows.chain(sums) {
            if let Some(error) = error {
                failures.entry(session).or_insert_with(|| error.clone());
            }
        }
        failures.into_iter().collect()
    }

    /// What is left without some sessions of `step`.
    #[must_use]
    pub fn without(self, step: &Step, gone: impl Fn(u64) -> bool) -> Self {
        let rows = step.wanted_rows().into_iter().zip(self.rows).filter(|(wanted, _)| !gone(wanted.session));
        let rows = rows.map(|(_, row)| row).collect();
        let sums = step.summed_rows().into_iter().zip(self.sums).filter(|(summed, _)| !gone(summed.session));
        Self { rows, sums: sums.map(|(_, sum)| sum).collect() }
    }
}

impl RowSum {
    /// The sum of no rows of so many values.
    pub fn zeros(width: usize) -> Self {
        Self(vec![0; width])
    }

    /// Adds a row.
    ///
    /// # Errors
    /// A value that is no number or beyond ±65,536: then the sum is of no use any more. What norms make is far smaller.
    pub fn add(&mut self, row: &[f32]) -> Result<(), BeyondSum> {
        for (sum, &value) in self.0.iter_mut().zip(row) {
            if value.is_nan() || value.abs() > VALUE_MOST {
                return Err(BeyondSum);
            }
            *sum += (f64::from(value) * SUM_UNITS).round_ties_even() as i64;
        }
        Ok(())
    }
}

/// A value that no sum can take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BeyondSum;

/// Units in a value of 1.
const SUM_UNITS: f64 = (1_u64 << 32) as f64;
/// The largest value that is added: with that many units each, as many rows as a frame may have do not overflow.
const VALUE_MOST: f32 = 65_536.0;

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
