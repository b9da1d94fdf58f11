//! Prompts as completions and vectors take them: a text, an object with one, token ids, or lists of these.

use std::fmt;

use qmesh_models::tokenizer::{Affixes, Specials};
use serde::{
    Deserialize, Deserializer,
    de::{
        self, MapAccess, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use serde_json::Value;

use super::{
    error::{ApiError, PromptTokens},
    json::{Object, OneOrMany},
};
use crate::text::TextModel;

/// Prompts as they were sent.
#[derive(Debug)]
pub(crate) enum SentPrompts {
    One(Prompt),
    Many(Vec<Entry>),
}

/// An entry of a list: a piece of one prompt where any of them is a token id, else a prompt each.
#[derive(Debug)]
pub(crate) enum Entry {
    Piece(Piece),
    Prompt(Prompt),
}

/// One prompt: texts and token ids, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt(Vec<Piece>);

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Piece {
    Id(u32),
    Text(String),
}

/// A prompt that is an object, as llama-server has it.
#[derive(Debug, Deserialize)]
struct PromptObject {
    prompt_string: Option<String>,
    content: Option<Vec<Object<Part>>>,
    multimodal_data: Option<OneOrMany<Value>>,
}

/// A part of what a message says.
#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

/// The prompts of the parameter of this name, of which there are `most` at most.
///
/// # Errors
/// `Invalid`: none, or too many.
pub(crate) fn prompts(param: &str, sent: Option<SentPrompts>, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |text: String| ApiError::invalid(param, text);
    let entries = match sent {
        None => return Err(wrong(format!("'{param}' is missing"))),
        Some(SentPrompts::One(prompt)) => return Ok(vec![prompt]),
        Some(SentPrompts::Many(entries)) => entries,
    };
    let is_id = |entry: &Entry| matches!(entry, Entry::Piece(Piece::Id(_)));
    if entries.iter().any(is_id) {
        let piece = |entry| match entry {
            Entry::Piece(piece) => Ok(piece),
            Entry::Prompt(_) => Err(wrong(format!("'{param}' mixes token ids with lists or objects"))),
        };
        return Ok(vec![Prompt(entries.into_iter().map(piece).collect::<Result<_, _>>()?)]);
    }
    match entries.len() {
        0 => Err(wrong(format!("'{param}' is an empty list"))),
        count if count > most => Err(wrong(format!("{count} prompts in one request, want at most {most}"))),
        _ => Ok(entries.into_iter().map(Entry::into_prompt).collect()),
    }
}

impl Prompt {
    /// Its ids, where it came in the parameter of this name.
    ///
    /// # Errors
    /// A text that cannot be split or is far too long; ids that are none, or nothing at all.
    pub(crate) fn ids(&self, param: &'static str, text: &TextModel) -> Result<Vec<u32>, ApiError> {
        let vocabulary = text.tokenizer.vocab_len();
        let mut ids = Vec::new();
        for (place, piece) in self.0.iter().enumerate() {
            match piece {
                // It begins as the model's texts do.
                Piece::Text(piece) if place == 0 => {
                    ids = text.raw_prompt(piece, Specials::Parse).map_err(|error| ApiError::text(param, &error))?;
                }
                Piece::Text(piece) => {
                    let least = ids.len() + text.tokenizer.fewest_tokens(piece, Specials::Parse);
                    // Splitting takes a hundred times the memory of a text.
                    if least > text.context {
                        let prompt_tokens = PromptTokens::AtLeast(least);
                        return Err(ApiError::ContextExceeded { param, prompt_tokens, context: text.context });
                    }
                    let split = text.tokenizer.encode(piece, Specials::Parse, Affixes::None);
                    ids.extend(split.map_err(|error| ApiError::invalid(param, error.to_string()))?);
                }
                Piece::Id(id) if usize::try_from(*id).is_ok_and(|id| id < vocabulary) => ids.push(*id),
                Piece::Id(id) => {
                    return Err(ApiError::invalid(param, format!("{id} is no token id below {vocabulary}")));
                }
            }
        }
        if ids.is_empty() {
            return Err(ApiError::invalid(param, "a prompt of token ids must hold at least one"));
        }
        Ok(ids)
    }

    /// Its text, where it is one text.
    pub(crate) fn into_text(self) -> Option<String> {
        let mut pieces = self.0;
        match (pieces.pop(), pieces.is_empty()) {
            (Some(Piece::Text(text)), true) => Some(text),
            (Some(Piece::Text(_) | Piece::Id(_)) | None, _) => None,
        }
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl Entry {
    fn into_prompt(self) -> Prompt {
        match self {
            Self::Piece(piece) => Prompt(vec![piece]),
            Self::Prompt(prompt) => prompt,
        }
    }
}

impl PromptObject {
    /// Its text; what is wrong with it otherwise.
    fn text(self) -> Result<String, &'static str> {
        let media = match self.multimodal_data {
            None => false,
            Some(OneOrMany::One(_)) => true,
            Some(OneOrMany::Many(all)) => !all.is_empty(),
        };
        match (self.prompt_string, self.content) {
            _ if media => Err("an object without 'multimodal_data': only text is read"),
            (Some(text), None) => Ok(text),
            (None, Some(parts)) if !parts.is_empty() => parts.into_iter().map(|Object(part)| part.text()).collect(),
            (Some(_) | None, _) => Err("an object with 'prompt_string', or with 'content', a list of parts of text"),
        }
    }
}

impl Part {
    fn text(self) -> Result<String, &'static str> {
        match (self.kind.as_deref(), self.text) {
            (Some("text"), Some(text)) => Ok(text),
            _ => Err("parts of the 'type' \"text\": only text is read"),
        }
    }
}

/// Reads an object with a text.
fn object<'de, A: MapAccess<'de>>(fields: A) -> Result<Prompt, A::Error> {
    let object = PromptObject::deserialize(MapAccessDeserializer::new(fields))?;
    object.text().map(Prompt::from).map_err(|wanted| de::Error::custom(format!("want {wanted}")))
}

fn id<E: de::Error>(id: u64, wanted: &dyn de::Expected) -> Result<u32, E> {
    u32::try_from(id).map_err(|_| E::invalid_value(Unexpected::Unsigned(id), wanted))
}

impl<'de> Deserialize<'de> for SentPrompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SentPromptsVisitor)
    }
}

struct SentPromptsVisitor;

impl<'de> Visitor<'de> for SentPromptsVisitor {
    type Value = SentPrompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, an object or a list")
    }

    fn visit_str<E>(self, text: &str) -> Result<SentPrompts, E> {
        Ok(SentPrompts::One(text.to_owned().into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<SentPrompts, A::Error> {
        object(fields).map(SentPrompts::One)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<SentPrompts, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(SentPrompts::Many)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id, an object or a list of strings and token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Entry, E> {
        Ok(Entry::Piece(Piece::Text(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Entry, E> {
        Ok(Entry::Piece(Piece::Id(id(number, &self)?)))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Entry, A::Error> {
        object(fields).map(Entry::Prompt)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Entry, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Prompt).map(Entry::Prompt)
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PieceVisitor)
    }
}

struct PieceVisitor;

impl Visitor<'_> for PieceVisitor {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a token id")
    }

    fn visit_str<E>(self, text: &str) -> Result<Piece, E> {
        Ok(Piece::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Piece, E> {
        Ok(Piece::Id(id(number, &self)?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn read(sent: Value) -> Result<Vec<Prompt>, String> {
        let sent = from_value(sent).map_err(|error| error.to_string())?;
        prompts("input", Some(sent), 3).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_with_a_token_id_is_one_prompt() {
        let text = |text: &str| Piece::Text(text.to_owned());
        let (one, other) = (Prompt(vec![text("a")]), Prompt(vec![text("b")]));
        let ids = Prompt(vec![Piece::Id(4), Piece::Id(5)]);
        let mixed = Prompt(vec![Piece::Id(4), text("a"), Piece::Id(5)]);
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": ""}]);
        for (sent, expected) in [
            (json!("a"), vec![one.clone()]),
            (json!([4, 5]), vec![ids.clone()]),
            (json!([4, "a", 5]), vec![mixed.clone()]),
            (json!(["a", "b"]), vec![one.clone(), other.clone()]),
            (json!(["a", [4, 5]]), vec![one.clone(), ids.clone()]),
            (json!([[4, 5], [4, "a", 5]]), vec![ids, mixed]),
            (json!({"prompt_string": "a"}), vec![one.clone()]),
            (json!({"prompt_string": "a", "multimodal_data": []}), vec![one.clone()]),
            (json!({"content": parts}), vec![one.clone()]),
            (json!(["b", {"prompt_string": "a"}]), vec![other, one]),
        ] {
            assert_eq!(read(sent.clone()), Ok(expected), "{sent}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let content = |part: Value| json!({"content": [part]});
        for (sent, said) in [
            (json!([]), "empty list"),
            (json!(["a", "b", "c", "d"]), "at most 3"),
            (json!([4, ["a"]]), "mixes token ids"),
            (json!([-1]), "-1"),
            (json!([4_294_967_296_u64]), "4294967296"),
            (json!(1), "a string, an object or a list"),
            (json!({}), "'prompt_string'"),
            (json!({"content": "a"}), "a sequence"),
            (json!({"content": []}), "'content'"),
            (content(json!({"type": "unknown"})), "only text is read"),
            (content(json!({"type": "image_url", "image_url": {"url": "data:"}})), "only text is read"),
            (json!({"prompt_string": "a", "multimodal_data": "aGk="}), "'multimodal_data'"),
            (json!({"prompt_string": "a", "multimodal_data": ["aGk="]}), "'multimodal_data'"),
        ] {
            let error = read(sent.clone()).expect_err("refused");
            assert!(error.contains(said), "{sent}: {error}");
        }
    }
}
