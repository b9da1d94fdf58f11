//! What is known about one token of a text, for clients that ask for log-probabilities.

use qmesh_models::tokenizer::{ControlTokens, Detokenizer, LeadingSpace, Tokenizer};
use qmesh_net::{Candidate, Sampled};

use super::TextModel;

/// A token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenText {
    /// The token and its log-probability; `None` for the first one of a prompt, which nothing predicts.
    pub spelled: Spelled,
    /// See `spelled`.
    pub logprob: Option<f32>,
    /// The most likely tokens in its place, best first, as many as were asked for.
    pub top: Vec<(Spelled, f32)>,
    /// Characters of text before it.
    pub offset: usize,
    /// Whether its bytes are part of the text.
    pub visibility: Visibility,
}

/// A token as people and programs see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Spelled {
    /// Its id.
    pub id: u32,
    /// Its text, with U+FFFD where it is part of a character.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Whether a token's bytes are part of the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Visibility {
    /// They are.
    Shown,
    /// It steers the model, or ended the generation.
    Hidden,
}

/// Clients read a number: JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

impl TokenText {
    pub(super) fn generated(tokenizer: &Tokenizer, row: &Sampled, offset: usize, visibility: Visibility) -> Self {
        Self {
            spelled: spell(tokenizer, row.token),
            logprob: Some(row.logprob.max(LEAST_LOGPROB)),
            top: alternatives(tokenizer, row),
            offset,
            visibility,
        }
    }
}

impl TextModel {
    /// The tokens of a prompt; `rows` are those of `TextEvent::Prompt`, row i scoring id i + 1.
    pub fn prompt_tokens(&self, ids: &[u32], rows: &[Sampled]) -> Vec<TokenText> {
        let mut detokenizer = Detokenizer::new(self.tokenizer.clone(), LeadingSpace::Strip, ControlTokens::Hide);
        let mut offset = 0;
        let scores = std::iter::once(None).chain(rows.iter().map(Some));
        ids.iter()
            .zip(scores)
            .map(|(&id, row)| {
                let start = offset;
                offset += detokenizer.push(id).chars().count();
                let hidden = self.tokenizer.is_control(id);
                TokenText {
                    spelled: spell(&self.tokenizer, id),
                    logprob: row.map(|row| row.target_logprob.max(LEAST_LOGPROB)),
                    top: row.map_or_else(Vec::new, |row| alternatives(&self.tokenizer, row)),
                    offset: start,
                    visibility: if hidden { Visibility::Hidden } else { Visibility::Shown },
                }
            })
            .collect()
    }
}

fn spell(tokenizer: &Tokenizer, id: u32) -> Spelled {
    let bytes = tokenizer.bytes(id);
    Spelled { id, text: String::from_utf8_lossy(bytes).into_owned(), bytes: bytes.to_vec() }
}

fn alternatives(tokenizer: &Tokenizer, row: &Sampled) -> Vec<(Spelled, f32)> {
    let one = |candidate: &Candidate| (spell(tokenizer, candidate.id), candidate.logprob.max(LEAST_LOGPROB));
    row.top.iter().map(one).collect()
}
