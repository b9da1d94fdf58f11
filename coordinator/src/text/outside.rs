//! Texts from outside in a chat template: what they spell must not become control tokens.

use qmesh_models::{
    chat::{Message, RenderOptions},
    tokenizer::Tokenizer,
};
use serde_json::{Map, Value as Json, json};

/// What a client puts into a template, with a mark in every control token that it spells.
#[derive(Debug)]
pub(super) struct Outside {
    pub(super) messages: Vec<Message>,
    pub(super) tools: Vec<Json>,
    pub(super) extra: Map<String, Json>,
    /// As `Specials::ParseUnmarked` wants it.
    pub(super) mark: char,
}

impl Outside {
    /// `None` where the texts already have every character that could be the mark.
    pub(super) fn new(tokenizer: &Tokenizer, messages: &[Message], options: &RenderOptions<'_>) -> Option<Self> {
        let outside = json!([messages, options.tools, options.extra]);
        let text = outside.to_string();
        let mark = NONCHARACTERS.into_iter().find(|&mark| !text.contains(mark))?;
        let marked = each_text(outside, &|text| tokenizer.mark(&text, mark).into_owned());
        let (messages, tools, extra) = serde_json::from_value(marked).ok()?;
        Some(Self { messages, tools, extra, mark })
    }
}

/// Changes every string, keys among them.
fn each_text(json: Json, change: &impl Fn(String) -> String) -> Json {
    match json {
        Json::String(text) => Json::String(change(text)),
        Json::Array(items) => items.into_iter().map(|item| each_text(item, change)).collect(),
        Json::Object(fields) => {
            fields.into_iter().map(|(key, value)| (change(key), each_text(value, change))).collect()
        }
        other @ (Json::Null | Json::Bool(_) | Json::Number(_)) => other,
    }
}

/// Characters that Unicode reserves for uses like this one: no text has them.
const NONCHARACTERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';
