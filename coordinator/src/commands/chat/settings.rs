//! How answers are drawn, as it can be changed within a conversation, and what they took so far.

use std::{fmt, time::Duration};

use qmesh_net::Sampling;

use crate::{
    cli::{parse_length, share_of_one, temperature},
    render::count,
    text::TextEnd,
};

/// How answers are drawn, and how long they may be.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) sampling: Sampling,
    pub(super) max_tokens: usize,
}

impl Settings {
    /// Does what is said after `/set`, a name and a value; what holds then, or what is wrong with it.
    pub(super) fn set(&mut self, said: &str) -> String {
        let (name, value) = said.split_once(char::is_whitespace).unwrap_or((said, ""));
        match self.change(name, value.trim()) {
            Ok(()) => self.to_string(),
            Err(wrong) => wrong,
        }
    }

    fn change(&mut self, name: &str, value: &str) -> Result<(), String> {
        let wrong = |why: String| format!("{name}: {why}");
        match name {
            "" => {}
            "temperature" | "temp" => self.sampling.temperature = temperature(value).map_err(wrong)?,
            "top_p" => self.sampling.top_p = share_of_one(value).map_err(wrong)?,
            "seed" => {
                self.sampling.seed =
                    value.parse().map_err(|_| wrong("a whole number from 0 on is needed".to_owned()))?;
            }
            "max_tokens" => self.max_tokens = parse_length(value).map_err(wrong)?,
            _ => return Err(format!("{name} cannot be set: temperature, top_p, seed and max_tokens can")),
        }
        Ok(())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sampling { temperature, top_p, seed, .. } = self.sampling;
        write!(f, "temperature {temperature}, top_p {top_p}, seed {seed}, max_tokens {}", self.max_tokens)
    }
}

/// What all answers of a conversation took.
#[derive(Debug, Default)]
pub(super) struct Stats {
    answers: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    /// Of the generated tokens, those that had a step of their own.
    decoded_tokens: usize,
    decode: Duration,
}

impl Stats {
    /// One more answer has ended.
    pub(super) fn add(&mut self, end: &TextEnd) {
        self.answers += 1;
        self.prompt_tokens += end.prompt_tokens;
        self.cached_tokens += end.cached_tokens;
        self.generated_tokens += end.generated_tokens;
        self.decoded_tokens += end.generated_tokens.saturating_sub(1);
        self.decode += end.decode;
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, prompt_tokens, cached_tokens, generated_tokens, decoded_tokens, decode } = self;
        let (answers, read) = (count(*answers, "answer"), count(*prompt_tokens, "token"));
        write!(f, "{answers}: {read} read, {cached_tokens} of them from before, {generated_tokens} generated")?;
        let seconds = decode.as_secs_f64();
        if seconds > 0.0 { write!(f, " ({:.1} tok/s)", *decoded_tokens as f64 / seconds) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TextEndReason;

    #[test]
    fn what_can_be_set_is_set_and_what_is_wrong_is_said() {
        let sampling = Sampling { temperature: 0.5, top_p: 0.75, seed: 7, ..Sampling::default() };
        let mut settings = Settings { sampling, max_tokens: 512 };
        assert_eq!(settings.set(""), "temperature 0.5, top_p 0.75, seed 7, max_tokens 512");
        settings.set("temperature 0");
        settings.set("top_p  0.25");
        settings.set("seed 18446744073709551615");
        let all = "temperature 0, top_p 0.25, seed 18446744073709551615, max_tokens 9";
        assert_eq!(settings.set("max_tokens 9"), all);
        for (said, part) in [
            ("temperature hot", "temperature: a number"),
            ("top_p 2", "top_p: a number"),
            ("seed -1", "seed: a whole number"),
            ("max_tokens 0", "max_tokens: a whole number"),
            ("seed", "seed: a whole number"),
            ("top_k 3", "top_k cannot be set"),
        ] {
            let answer = settings.set(said);
            assert!(answer.starts_with(part), "{said}: {answer}");
        }
        assert_eq!(settings.to_string(), all, "nothing wrong was set");
    }

    #[test]
    fn stats_add_up_what_answers_took() {
        let mut stats = Stats::default();
        assert_eq!(stats.to_string(), "0 answers: 0 tokens read, 0 of them from before, 0 generated");
        let end = TextEnd {
            reason: TextEndReason::EndToken,
            prompt_tokens: 30,
            generated_tokens: 11,
            thought_tokens: 0,
            stop: None,
            cached_tokens: 10,
            prefill: Duration::from_millis(100),
            decode: Duration::from_millis(500),
        };
        stats.add(&end);
        stats.add(&end);
        assert_eq!(stats.to_string(), "2 answers: 60 tokens read, 20 of them from before, 22 generated (20.0 tok/s)");
    }
}
