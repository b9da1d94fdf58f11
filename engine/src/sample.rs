//! From a row of logits to a token.

mod dry;
mod filter;

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap};

use qmesh_kernels::{
    lanes::Simd,
    math::{Exponentials, LogSum, SumExponentials},
    real,
};

pub use self::dry::Dry;
use self::filter::{typical, without_top_choices};
use crate::{
    error::EngineError,
    noise::Noise,
    step::{SampledRow, TokenSet},
};

/// How a session's tokens are chosen among those that may follow, in this order: bias, penalties, DRY, top-k, typical, top-p, min-p,
/// XTC, temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParameters {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep the k largest logits; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of the most likely ids whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep ids at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keep ids whose surprise is nearest to the expected one until their probabilities reach this; 1 keeps all.
    pub typical_p: f32,
    /// How often the likeliest ids are left out, by a chance that belongs to the position: those that are at least
    /// `xtc_threshold` likely, but for the last of them; 0 is never.
    pub xtc_probability: f32,
    /// Of those ids; above one half there is at most one, which stays.
    pub xtc_threshold: f32,
    /// Divides positive and multiplies negative logits of ids seen in the window; 1 is none.
    pub repeat_penalty: f32,
    /// Subtracted from a logit for each time the id is in the window; 0 is none.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of an id in the window; 0 is none.
    pub presence_penalty: f32,
    /// How many of the session's last ids (prompt included) the penalties see.
    pub penalty_window: usize,
    /// What keeps the text from repeating itself word for word, if anything.
    pub dry: Option<Dry>,
    /// Key of the noise, with `sequence`, the position and the id.
    pub seed: u64,
    /// Which of several samples of one request this is.
    pub sequence: u64,
    /// Added to the logits of single ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the most likely ids to report with each row.
    pub top: usize,
    /// Whether each row's logits are hashed.
    pub digest: LogitsDigest,
}

/// Whether a row's raw logits are hashed, so that two runs can be compared bit by bit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogitsDigest {
    /// No.
    Skip,
    /// Yes.
    Compute,
}

impl Default for SamplingParameters {
    /// Greedy, with nothing beside the token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            dry: None,
            seed: 0,
            sequence: 0,
            logit_bias: Vec::new(),
            top: 0,
            digest: LogitsDigest::Skip,
        }
    }
}

impl SamplingParameters {
    /// Refuses values outside their ranges.
    pub(crate) fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let finite = |name, x: f32| ensure(x.is_finite(), name, || format!("{x} is not finite"));
        let within = |name, ok, x: f32, range: &str| ensure(ok, name, || format!("{x} is not {range}"));
        finite("temperature", self.temperature)?;
        within("temperature", self.temperature >= 0.0, self.temperature, "0 or more")?;
        within("top_p", self.top_p > 0.0 && self.top_p <= 1.0, self.top_p, "in (0, 1]")?;
        within("min_p", (0.0..=1.0).contains(&self.min_p), self.min_p, "in [0, 1]")?;
        let shares = [("xtc_probability", self.xtc_probability), ("xtc_threshold", self.xtc_threshold)];
        for (name, share) in shares {
            within(name, (0.0..=1.0).contains(&share), share, "in [0, 1]")?;
        }
        within("typical_p", self.typical_p > 0.0 && self.typical_p <= 1.0, self.typical_p, "in (0, 1]")?;
        for (name, value) in
            self.dry.iter().flat_map(|dry| [("dry_multiplier", dry.multiplier), ("dry_base", dry.base)])
        {
            finite(name, value)?;
        }
        let base = self.dry.as_ref().map_or(1.0, |dry| dry.base);
        within("dry_base", base >= 1.0, base, "1 or more")?;
        finite("repeat_penalty", self.repeat_penalty)?;
        within("repeat_penalty", self.repeat_penalty > 0.0, self.repeat_penalty, "above 0")?;
        finite("frequency_penalty", self.frequency_penalty)?;
        finite("presence_penalty", self.presence_penalty)?;
        ensure(self.top <= vocab, "top", || format!("{} is more than the vocabulary of {vocab}", self.top))?;
        for (id, bias) in &self.logit_bias {
            ensure((*id as usize) < vocab, "logit_bias", || format!("id {id} is outside the vocabulary of {vocab}"))?;
            finite("logit_bias", *bias)?;
        }
        Ok(())
    }

    /// Samples after the row whose session's ids so far, its own included, are `history`; `target` is the id that
    /// follows in the same step. All that is said of the row is said of the tokens that are `allowed`, but for the digest.
    ///
    /// # Errors
    /// Logits that are not finite, or no token that is allowed.
    pub(crate) fn sample(
        &self,
        simd: Simd,
        raw: &[f32],
        allowed: Option<&TokenSet>,
        history: &[u32],
        target: Option<u32>,
    ) -> Result<SampledRow, Unsampled> {
        if !raw.iter().all(|x| x.is_finite()) {
            return Err(Unsampled::NotFinite);
        }
        let masked = match allowed {
            Some(allowed) => Cow::Owned(among(raw, allowed)?),
            None => Cow::Borrowed(raw),
        };
        let logits = &*masked;
        let sum = SumExponentials(logits).run(simd);
        let adjusted = self.adjust(logits, history);
        let plain = self.temperature == 0.0 && !self.may_leave_out_the_likeliest();
        let token = if plain { most_likely(&adjusted) } else { self.draw(simd, &adjusted, history) };
        let top = largest(logits, self.top).into_iter().filter(|(_, x)| x.is_finite());
        Ok(SampledRow {
            token,
            logprob: sum.log_probability(logits[token as usize]),
            target_logprob: target.map_or(f32::NAN, |id| sum.log_probability(logits[id as usize])),
            digest: match self.digest {
                LogitsDigest::Skip => 0,
                LogitsDigest::Compute => digest(raw),
            },
            top: top.map(|(id, x)| (id, x, sum.log_probability(x))).collect(),
        })
    }

    /// Adds the biases and subtracts the penalties.
    fn adjust<'a>(&self, logits: &'a [f32], history: &[u32]) -> Cow<'a, [f32]> {
        let penalised = self.repeat_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0;
        let mut adjusted = Cow::Borrowed(logits);
        for (id, bias) in &self.logit_bias {
            adjusted.to_mut()[*id as usize] += bias;
        }
        if penalised {
            let mut counts = BTreeMap::new();
            for id in &history[history.len().saturating_sub(self.penalty_window)..] {
                *counts.entry(*id).or_insert(0_u32) += 1;
            }
            for (id, count) in counts {
                let x = &mut adjusted.to_mut()[id as usize];
                *x = if *x > 0.0 { *x / self.repeat_penalty } else { *x * self.repeat_penalty };
                *x -= count as f32 * self.frequency_penalty + self.presence_penalty;
            }
        }
        for (id, penalty) in self.dry.iter().flat_map(|dry| dry.penalties(history)) {
            adjusted.to_mut()[id as usize] -= penalty;
        }
        adjusted
    }

    fn may_leave_out_the_likeliest(&self) -> bool {
        self.typical_p < 1.0 || self.xtc_probability > 0.0
    }

    /// Filters, then takes the largest of logit / temperature + noise: a sample of the filtered softmax. At temperature 0 there is no
    /// noise.
    fn draw(&self, simd: Simd, logits: &[f32], history: &[u32]) -> u32 {
        let noise = Noise { seed: self.seed, sequence: self.sequence, position: history.len() as u32 };
        let mut candidates = self.likely_ids(simd, logits);
        if self.min_p > 0.0 {
            let largest = candidates.iter().fold(f32::NEG_INFINITY, |m, (_, x)| m.max(*x));
            let least = largest + real::ln(f64::from(self.min_p)) as f32;
            candidates.retain(|(_, x)| *x >= least);
        }
        if self.xtc_probability > 0.0 && noise.chance() <= f64::from(self.xtc_probability) {
            candidates = without_top_choices(simd, candidates, self.xtc_threshold);
        }
        if self.temperature == 0.0 {
            return candidates.into_iter().min_by(by_logit).map_or(0, |(id, _)| id);
        }
        let score = |(id, x): (u32, f32)| (id, f64::from(x) / f64::from(self.temperature) + noise.gumbel(id));
        let scores = candidates.into_iter().map(score);
        // Nearest to the front wins a tie of scores, which random bits make as good as impossible.
        scores.reduce(|best, other| if other.1 > best.1 { other } else { best }).map_or(0, |(id, _)| id)
    }

    /// What top-k, typical sampling and top-p leave, best first; every id in order where none is set.
    fn likely_ids(&self, simd: Simd, logits: &[f32]) -> Vec<(u32, f32)> {
        if self.typical_p >= 1.0 {
            return self.most_likely_ids(simd, logits);
        }
        let kept = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
        let mut candidates = typical(simd, largest(logits, kept), self.typical_p);
        if self.top_p < 1.0 {
            let left: Vec<f32> = candidates.iter().map(|(_, x)| *x).collect();
            let sum = SumExponentials(&left).run(simd);
            candidates.truncate(self.nucleus(simd, &candidates, sum).unwrap_or(candidates.len()));
        }
        candidates
    }

    /// What top-k and top-p leave, best first; every id in order where neither is set.
    fn most_likely_ids(&self, simd: Simd, logits: &[f32]) -> Vec<(u32, f32)> {
        let kept = if self.top_k == 0 { logits.len() } else { self.top_k.min(logits.len()) };
        if self.top_p >= 1.0 {
            return if kept == logits.len() { numbered(logits) } else { largest(logits, kept) };
        }
        if kept < logits.len() {
            let mut candidates = largest(logits, kept);
            let all: Vec<f32> = candidates.iter().map(|(_, x)| *x).collect();
            let sum = SumExponentials(&all).run(simd);
            candidates.truncate(self.nucleus(simd, &candidates, sum).unwrap_or(kept));
            return candidates;
        }
        // A few ids nearly always hold the mass that is asked for: sort more of them only where they do not.
        let sum = SumExponentials(logits).run(simd);
        let mut count = 256.min(logits.len());
        loop {
            let mut candidates = largest(logits, count);
            if let Some(len) = self.nucleus(simd, &candidates, sum) {
                candidates.truncate(len);
                return candidates;
            }
            if count == logits.len() {
                return candidates;
            }
            count = (8 * count).min(logits.len());
        }
    }

    /// How many of the candidates, best first, reach top-p; `None` where all of them do not.
    fn nucleus(&self, simd: Simd, candidates: &[(u32, f32)], sum: LogSum) -> Option<usize> {
        let mut shares: Vec<f32> = candidates.iter().map(|(_, x)| *x).collect();
        Exponentials { x: &mut shares, largest: sum.largest }.run(simd);
        let mut reached = 0.0;
        let last = shares.iter().position(|share| {
            reached += share;
            reached >= self.top_p * sum.sum
        });
        last.map(|last| last + 1)
    }
}

/// Why there is no sample after a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unsampled {
    /// The logits are not.
    NotFinite,
    /// No token may follow.
    NothingAllowed,
}

/// The logits, with those of other tokens than the allowed ones out of reach: no bias, penalty, filter or noise brings them
/// back, and sums pass them over.
fn among(logits: &[f32], allowed: &TokenSet) -> Result<Vec<f32>, Unsampled> {
    let masked = (0..).zip(logits).map(|(id, x)| if allowed.contains(id) { *x } else { f32::NEG_INFINITY });
    let masked: Vec<f32> = masked.collect();
    if masked.iter().any(|x| x.is_finite()) { Ok(masked) } else { Err(Unsampled::NothingAllowed) }
}

/// The largest logit's id; the lowest of equals.
fn most_likely(logits: &[f32]) -> u32 {
    let best = (1..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
    best as u32
}

/// The `count` largest, best first, ties by lower id.
fn largest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all = numbered(logits);
    if count < all.len() {
        all.select_nth_unstable_by(count - 1, by_logit);
        all.truncate(count);
    }
    all.sort_unstable_by(by_logit);
    all
}

/// Best first, ties by lower id.
fn by_logit(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    // Adding zero makes the two zeros equal.
    (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0))
}

fn numbered(logits: &[f32]) -> Vec<(u32, f32)> {
    (0..).zip(logits.iter().copied()).collect()
}

fn digest(logits: &[f32]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for chunk in logits.chunks(4096) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    let hash = hasher.finalize();
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

fn ensure(ok: bool, name: &'static str, what: impl Fn() -> String) -> Result<(), EngineError> {
    ok.then_some(()).ok_or_else(|| EngineError::Sampling { name, what: what() })
}

#[cfg(test)]
mod tests;
