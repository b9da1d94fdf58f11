//! Prompts as completions and vectors take them: a text, token ids, or a list of either.

use std::fmt;

use qmesh_models::tokenizer::Specials;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Unexpected, Visitor},
};

use super::{error::ApiError, json::OneOrMany};
use crate::text::TextModel;

/// What a list may hold, all entries alike.
#[derive(Debug)]
pub(crate) enum PromptEntry {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

/// One prompt as it was sent.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The prompts of the parameter of this name, of which there are `most` at most.
///
/// # Errors
/// `Invalid`: none, too many, or a list of entries that are not alike.
pub(crate) fn prompts(param: &str, sent: Option<OneOrMany<PromptEntry>>, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |text: String| ApiError::invalid(param, text);
    let entries = match sent {
        None => return Err(wrong(format!("'{param}' is missing"))),
        Some(OneOrMany::One(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(OneOrMany::Many(entries)) => entries,
    };
    let mut prompts = Vec::new();
    let mut ids = Vec::new();
    for entry in entries {
        match entry {
            PromptEntry::Id(id) => ids.push(id),
            PromptEntry::Text(text) => prompts.push(Prompt::Text(text)),
            PromptEntry::Ids(ids) => prompts.push(Prompt::Ids(ids)),
        }
    }
    match (prompts.len(), ids.is_empty()) {
        (0, true) => Err(wrong(format!("'{param}' is an empty list"))),
        (0, false) => Ok(vec![Prompt::Ids(ids)]),
        (count, true) if count <= most => Ok(prompts),
        (count, true) => Err(wrong(format!("{count} prompts in one request, want at most {most}"))),
        (_, false) => Err(wrong(format!("'{param}' mixes token ids with strings or lists"))),
    }
}

impl Prompt {
    /// Its ids, where it came in the parameter of this name.
    ///
    /// # Errors
    /// A text that cannot be split or is far too long; ids that are none, or no ids at all.
    pub(crate) fn ids(&self, param: &'static str, text: &TextModel) -> Result<Vec<u32>, ApiError> {
        match self {
            Self::Text(prompt) => {
                text.raw_prompt(prompt, Specials::Parse).map_err(|error| ApiError::text(param, &error))
            }
            Self::Ids(ids) => {
                let vocabulary = text.tokenizer.vocab_len();
                if let Some(id) = ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= vocabulary)) {
                    return Err(ApiError::invalid(param, format!("{id} is no token id below {vocabulary}")));
                }
                if ids.is_empty() {
                    return Err(ApiError::invalid(param, "a prompt of token ids must hold at least one"));
                }
                Ok(ids.clone())
            }
        }
    }
}

impl<'de> Deserialize<'de> for PromptEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptEntryVisitor)
    }
}

struct PromptEntryVisitor;

impl<'de> Visitor<'de> for PromptEntryVisitor {
    type Value = PromptEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<PromptEntry, E> {
        Ok(PromptEntry::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptEntry, E> {
        let id = u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))?;
        Ok(PromptEntry::Id(id))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<PromptEntry, A::Error> {
        Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(PromptEntry::Ids)
    }
}
