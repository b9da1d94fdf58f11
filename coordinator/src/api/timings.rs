//! What answers took, as llama-server tells it: its clients show their users how fast it was.

use std::time::Duration;

use serde_json::{Value, json};

use crate::text::TextEnd;

/// Tokens and times of an answer, or of several at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Timings {
    /// Of the prompts' tokens, those that were there already.
    pub(crate) cached: usize,
    /// Of the prompts' tokens, those that were computed.
    pub(crate) computed: usize,
    /// From admission to the first token.
    pub(crate) prefill: Duration,
    pub(crate) generated: usize,
    /// From the first token to the last.
    pub(crate) decode: Duration,
}

/// How far a prompt is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Progress {
    /// Its tokens.
    pub(crate) total: usize,
    /// Of these, those that were there already.
    pub(crate) cached: usize,
    /// Of these, those that are there now.
    pub(crate) processed: usize,
    /// From handing it in.
    pub(crate) took: Duration,
}

impl Progress {
    /// What it took so far.
    pub(crate) fn timings(self) -> Timings {
        let Self { cached, processed, took, .. } = self;
        Timings { cached, computed: processed.saturating_sub(cached), prefill: took, ..Timings::default() }
    }

    /// The object `prompt_progress`.
    pub(crate) fn json(self) -> Value {
        let Self { total, cached, processed, took } = self;
        json!({"total": total, "cache": cached, "processed": processed, "time_ms": took.as_millis() as u64})
    }
}

impl Timings {
    /// Of an answer that has ended.
    pub(crate) fn of(end: &TextEnd) -> Self {
        Self {
            cached: end.cached_tokens,
            computed: end.prompt_tokens.saturating_sub(end.cached_tokens),
            prefill: end.prefill,
            generated: end.generated_tokens,
            decode: end.decode,
        }
    }

    /// Of both, which ran side by side.
    pub(crate) fn beside(self, other: Self) -> Self {
        Self {
            cached: self.cached + other.cached,
            computed: self.computed + other.computed,
            prefill: self.prefill.max(other.prefill),
            generated: self.generated + other.generated,
            decode: self.decode.max(other.decode),
        }
    }

    /// The object `timings`. The first token comes with the prompt: what follows it took the time of decoding.
    pub(crate) fn json(self) -> Value {
        let Self { cached, computed, prefill, generated, decode } = self;
        let (prompt_ms, predicted_ms) = (prefill.as_secs_f64() * 1e3, decode.as_secs_f64() * 1e3);
        let decoded = generated.saturating_sub(1);
        json!({
            "cache_n": cached,
            "prompt_n": computed,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": per_token(computed, prompt_ms),
            "prompt_per_second": per_second(computed, prompt_ms),
            "predicted_n": generated,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": per_token(decoded, predicted_ms),
            "predicted_per_second": per_second(decoded, predicted_ms),
        })
    }
}

fn per_token(tokens: usize, ms: f64) -> f64 {
    if tokens > 0 { ms / tokens as f64 } else { 0.0 }
}

fn per_second(tokens: usize, ms: f64) -> f64 {
    if ms > 0.0 { tokens as f64 * 1e3 / ms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_costs_no_step_of_its_own() {
        let timings = Timings {
            cached: 3,
            computed: 10,
            prefill: Duration::from_millis(40),
            generated: 5,
            decode: Duration::from_millis(80),
        };
        let json = timings.json();
        for (name, value) in [
            ("cache_n", 3.0),
            ("prompt_n", 10.0),
            ("prompt_per_token_ms", 4.0),
            ("prompt_per_second", 250.0),
            ("predicted_n", 5.0),
            ("predicted_per_token_ms", 20.0),
            ("predicted_per_second", 50.0),
        ] {
            assert_eq!(json[name].as_f64(), Some(value), "{name}");
        }
        let single = Timings { generated: 1, decode: Duration::ZERO, ..timings }.json();
        assert_eq!((&single["predicted_per_token_ms"], &single["predicted_per_second"]), (&json!(0.0), &json!(0.0)));
    }

    #[test]
    fn answers_side_by_side_add_up_their_tokens_and_not_their_times() {
        let one = Timings { computed: 4, prefill: Duration::from_millis(9), generated: 3, ..Timings::default() };
        let other = Timings { cached: 4, prefill: Duration::from_millis(5), generated: 2, ..Timings::default() };
        let both = Timings { cached: 4, computed: 4, prefill: one.prefill, generated: 5, ..Timings::default() };
        assert_eq!(one.beside(other), both);
    }
}
