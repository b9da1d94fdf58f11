//! What breaks repetitions (DRY), as tokens: workers see no text.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use qmesh_models::tokenizer::{Affixes, Specials};
use qmesh_net::{Dry, TokenMask};
use thiserror::Error;

use super::TextModel;

/// What keeps a text from repeating itself word for word, in texts; [`Dry`] has it in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct DryRules {
    /// What is subtracted from the logit of a token that lengthens a repetition; 0 is off.
    pub multiplier: f32,
    /// By what factor that grows with each token of the repetition.
    pub base: f32,
    /// How many tokens may be repeated without it.
    pub allowed_length: u32,
    /// How many last tokens are looked at; all of the context without a number, and 0 is off.
    pub window: Option<u32>,
    /// Texts that no repetition goes across.
    pub breakers: Vec<String>,
}

impl DryRules {
    /// llama-server's default of `base`.
    pub const BASE: f32 = 1.75;
    /// llama-server's default of `allowed_length`.
    pub const ALLOWED_LENGTH: u32 = 2;
    /// llama-server's default of `window`.
    pub const WINDOW: u32 = 64;
    /// The largest multiplier and the largest base.
    pub const MOST: f32 = 100.0;
}

impl Default for DryRules {
    /// llama-server's, where it is off.
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: Self::BASE,
            allowed_length: Self::ALLOWED_LENGTH,
            window: Some(Self::WINDOW),
            breakers: ["\n", ":", "\"", "*"].map(str::to_owned).into(),
        }
    }
}

/// What is wrong with texts that shall break repetitions.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum BreakerError {
    /// None, or too many.
    #[error("1 to {BREAKERS} strings are needed")]
    Count,
    /// An empty one, or one that is too long.
    #[error("every string must have 1 to {BREAKER_BYTES} bytes")]
    Length,
    /// The vocabulary has too many tokens for them.
    #[error("there are too many ways to write them in tokens: take shorter strings")]
    Ways,
}

/// What the breakers that were asked for last are in a model's tokens: requests mostly ask for the same ones. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct BreakerShelf(Arc<Mutex<VecDeque<Kept>>>);

/// Texts, and what they are in tokens; nothing where there are too many ways to write them.
type Kept = (Vec<String>, Option<Arc<Breakers>>);

/// Tokens that no repetition goes across.
#[derive(Debug, Eq, PartialEq)]
struct Breakers {
    /// Those that have a breaking text in them.
    tokens: TokenMask,
    /// Those that have its beginning at their end, each with the tokens of the rest.
    sequences: Vec<Vec<u32>>,
}

impl TextModel {
    /// The same in tokens; nothing where it is off. Blocks: it looks at all of the vocabulary.
    ///
    /// # Errors
    /// What is wrong with the breakers, also where it is off.
    pub fn dry(&self, rules: &DryRules) -> Result<Option<Dry>, BreakerError> {
        if !(1..=BREAKERS).contains(&rules.breakers.len()) {
            return Err(BreakerError::Count);
        }
        if rules.breakers.iter().any(|text| !(1..=BREAKER_BYTES).contains(&text.len())) {
            return Err(BreakerError::Length);
        }
        if rules.multiplier == 0.0 || rules.window == Some(0) {
            return Ok(None);
        }
        let breakers = self.kept_breakers(&rules.breakers).ok_or(BreakerError::Ways)?;
        let context = u32::try_from(self.context).unwrap_or(u32::MAX);
        Ok(Some(Dry {
            multiplier: rules.multiplier,
            base: rules.base,
            allowed_length: rules.allowed_length,
            window: rules.window.unwrap_or(context).min(context),
            breakers: breakers.tokens.clone(),
            breaking_sequences: breakers.sequences.clone(),
        }))
    }

    /// The same as `breakers`, from the shelf where they are on it.
    fn kept_breakers(&self, texts: &[String]) -> Option<Arc<Breakers>> {
        let shelf = || self.breakers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = shelf().iter().find(|(kept, _)| kept == texts) {
            return found.clone();
        }
        let found = self.breakers(texts).map(Arc::new);
        let mut shelf = shelf();
        shelf.truncate(KEPT - 1);
        shelf.push_front((texts.to_vec(), found.clone()));
        found
    }

    /// The tokens that write one of these texts, alone or with others; none where there are too many ways to. Blocks: it
    /// looks at all of the vocabulary.
    fn breakers(&self, texts: &[String]) -> Option<Breakers> {
        let mut bits = vec![0_u8; self.tokenizer.vocab_len().div_ceil(8)];
        let mut sequences = Vec::new();
        let ids = 0..u32::try_from(self.tokenizer.vocab_len()).unwrap_or(u32::MAX);
        for (id, text) in ids.flat_map(|id| texts.iter().map(move |text| (id, text))) {
            let (token, breaking) = (self.tokenizer.bytes(id), text.as_bytes());
            if token.windows(breaking.len()).any(|part| part == breaking) {
                bits[id as usize / 8] |= 1 << (id % 8);
                continue;
            }
            let shorter = 1..breaking.len().min(token.len() + 1);
            for written in shorter.filter(|&written| token.ends_with(&breaking[..written])) {
                sequences.extend(self.sequence(id, text.get(written..)));
            }
            if sequences.len() > SEQUENCES {
                return None;
            }
        }
        sequences.sort_unstable();
        sequences.dedup();
        Some(Breakers { tokens: TokenMask::of_bits(bits), sequences })
    }

    /// A token and those of the rest of a text.
    fn sequence(&self, id: u32, rest: Option<&str>) -> Option<Vec<u32>> {
        let mut tail = self.tokenizer.encode(rest?, Specials::Plain, Affixes::None).ok()?;
        tail.truncate(TAIL);
        Some([vec![id], tail].concat())
    }
}

/// Lists of breakers that are kept: some hundred kilobytes each with a large vocabulary.
const KEPT: usize = 16;
/// Most texts that break repetitions.
const BREAKERS: usize = 16;
/// Most bytes of one.
const BREAKER_BYTES: usize = 40;
/// Most ways to write a breaking text with several tokens.
const SEQUENCES: usize = 4096;
/// Most tokens behind the first one.
const TAIL: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::fake::{CONTROL, byte, model, word};

    #[test]
    fn breakers_are_all_tokens_that_write_them() {
        let breakers = model().breakers(&["o".to_owned(), "STOP".to_owned()]).expect("few ways");
        let alone: Vec<u32> = (0..300).filter(|id| breakers.tokens.allows(*id)).collect();
        assert_eq!(alone, [CONTROL, byte(b'o'), word("Hello"), word("▁world"), word("▁more")]);
        // "ST" and the byte "S" may begin the other one.
        assert!(breakers.sequences.iter().any(|sequence| sequence[..] == [word("▁ST"), word("OP")]), "{breakers:?}");
        let begin: Vec<u32> = breakers.sequences.iter().map(|sequence| sequence[0]).collect();
        assert_eq!(begin, [byte(b'S'), word("▁ST")]);
        assert!(model().breakers(&[]).expect("no ways").sequences.is_empty());
    }

    #[test]
    fn breakers_are_looked_for_once() {
        let model = model();
        let kept = |text: &str| model.kept_breakers(&[text.to_owned()]).expect("few ways");
        let first = kept("o");
        assert_eq!(*first, model.breakers(&["o".to_owned()]).expect("few ways"));
        assert!(Arc::ptr_eq(&first, &kept("o")) && !Arc::ptr_eq(&first, &kept("a")));
        // Those that were asked for longest ago are forgotten.
        for n in 0..KEPT {
            kept(&n.to_string());
        }
        assert!(!Arc::ptr_eq(&first, &kept("o")));
        assert_eq!(model.breakers.0.lock().expect("no panic holds it").len(), KEPT);
    }
}
