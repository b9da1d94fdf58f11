//! Chat templates: the Jinja that a model brings along, rendered with bounds on time, memory and stack.

mod args;
mod budget;
mod builtins;
pub mod date;
mod escape;
mod filters;
#[cfg(test)]
mod golden;
mod guard;
mod json;
mod methods;
mod operators;
mod renderer;
mod repr;
mod sandbox;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json, json};
use thiserror::Error;

use self::renderer::Renderer;
use crate::{gguf::KeyError, tokenizer::Vocabulary};

/// Longest source of a template, in bytes; real ones are under 30 KiB.
pub const SOURCE_BYTES_MAX: usize = 128 << 10;
/// Longest rendered text, in bytes.
pub const RENDERED_BYTES_MAX: usize = 8 << 20;

/// A model's chat template. A hostile one costs an error, in bounded time and memory.
#[derive(Debug)]
pub struct ChatTemplate {
    bos: String,
    eos: String,
    renderer: Renderer,
}

/// One message of a conversation.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What they say: a text, a list of parts, or null where an assistant only calls tools. `None` leaves the key out,
    /// which templates tell from null.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub content: Option<Json>,
    /// Whatever else the template may read: `tool_calls`, `tool_call_id`, `name`, `reasoning_content`.
    #[serde(flatten)]
    pub extra: Map<String, Json>,
}

/// What a render needs besides the messages.
#[derive(Clone, Debug)]
pub struct RenderOptions<'a> {
    /// Where the text ends.
    pub generation_prompt: GenerationPrompt,
    /// Tools as the client described them; to templates none are null.
    pub tools: &'a [Json],
    /// Further variables, such as `enable_thinking`; none of ours can be replaced.
    pub extra: Map<String, Json>,
    /// What `strftime_now` says, in UTC.
    pub now: SystemTime,
}

/// Where a rendered text ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GenerationPrompt {
    /// With the head of the assistant's answer: for an answer.
    Add,
    /// With the last message: for a conversation as it was.
    Omit,
    /// Within the last message, where its content ends: for more of it.
    Continue,
}

/// What can be wrong with a chat template or with messages for it.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum TemplateError {
    #[error("model has no chat template; use the completions endpoint, or name a template file")]
    Missing,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("chat template has {bytes} bytes, over the limit of {}", SOURCE_BYTES_MAX)]
    TooLong { bytes: usize },
    #[error("chat template does not parse: {message}")]
    Syntax { message: String },
    #[error("chat template uses {tag:?}, which chat templates may not")]
    Tag { tag: &'static str },
    #[error("{message}")]
    Raised { message: String },
    #[error("chat template failed: {message}")]
    Failed { message: String },
    #[error("the chat template does not write the last message as it is, so that nothing can be added to it")]
    NotRepeated,
    #[error("chat template ran over its limit of {what}")]
    Limit { what: &'static str },
    #[error("cannot start a thread for the chat template: {0}")]
    Thread(#[from] std::io::Error),
}

impl ChatTemplate {
    /// Compiles `source`, whose `bos_token` and `eos_token` are these.
    ///
    /// # Errors
    /// The source is too long, does not parse, or uses other templates.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::TooLong { bytes: source.len() });
        }
        let source = sandbox::readable(source);
        sandbox::check(&source)?;
        Ok(Self { bos: bos.to_owned(), eos: eos.to_owned(), renderer: Renderer::new(source) })
    }

    /// The template that a GGUF file brings along.
    ///
    /// # Errors
    /// `TemplateError::Missing` where it brings none, `TemplateError::Key` where it is no text; else as for `new`.
    pub fn from_vocabulary(vocabulary: &Vocabulary) -> Result<Self, TemplateError> {
        let text = |id: Option<u32>| id.and_then(|id| vocabulary.tokens.get(id as usize)).map_or("", String::as_str);
        let source = vocabulary.chat_template.clone().transpose()?.filter(|source| !source.trim().is_empty());
        Self::new(&source.ok_or(TemplateError::Missing)?, text(vocabulary.bos), text(vocabulary.eos))
    }

    /// Its source, with line ends of one kind.
    pub fn source(&self) -> &str {
        self.renderer.source()
    }

    /// The text of a conversation, at most `RENDERED_BYTES_MAX`, to be encoded with `Specials::Parse`.
    ///
    /// # Errors
    /// `TemplateError::Raised` has the template's own complaint about the messages; the others are its faults.
    pub fn render(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String, TemplateError> {
        let mut variables = options.extra.clone();
        let last = messages.last().and_then(|message| message.content.clone());
        let messages: Vec<_> = messages.iter().map(Message::templated).collect();
        variables.insert("messages".to_owned(), Json::Array(messages));
        variables.insert("bos_token".to_owned(), json!(self.bos));
        variables.insert("eos_token".to_owned(), json!(self.eos));
        let add = options.generation_prompt == GenerationPrompt::Add;
        variables.insert("add_generation_prompt".to_owned(), json!(add));
        let tools = if options.tools.is_empty() { Json::Null } else { json!(options.tools) };
        variables.insert("tools".to_owned(), tools);
        variables.entry("documents").or_insert(Json::Null);
        let text = self.renderer.render(variables, options.now)?;
        match options.generation_prompt {
            GenerationPrompt::Add | GenerationPrompt::Omit => Ok(text),
            GenerationPrompt::Continue => unfinished(text, last.as_ref()),
        }
    }
}

impl TemplateError {
    /// The engine ended in the middle, which is the template's fault.
    fn panicked() -> Self {
        Self::Failed { message: "the template engine panicked".to_owned() }
    }
}

impl Message {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Json::String(content.into())), extra: Map::new() }
    }

    /// The message as templates read it. Thoughts go by several names; as in transformers each template finds its own.
    fn templated(&self) -> Json {
        let mut message = json!(self);
        let given = ["reasoning_content", "thinking", "reasoning"]
            .iter()
            .find_map(|&name| self.extra.get(name).filter(|thoughts| !thoughts.is_null()));
        if let (Some(thoughts), Some(fields)) = (given, message.as_object_mut()) {
            fields.entry("thinking").or_insert_with(|| thoughts.clone());
            fields.insert("reasoning_content".to_owned(), thoughts.clone());
        }
        message
    }
}

impl RenderOptions<'_> {
    /// For an answer without tools.
    pub fn new(now: SystemTime) -> Self {
        Self { generation_prompt: GenerationPrompt::Add, tools: &[], extra: Map::new(), now }
    }

    /// The same with the date by the names that templates look for which do not ask `strftime_now`: Llama's and
    /// Firefunction's would tell of another day otherwise.
    pub fn dated(now: SystemTime) -> Self {
        let dates = [("date_string", "%d %b %Y"), ("datetime", "%b %d %Y")];
        let date = |(name, format): (&str, &str)| Some((name.to_owned(), date::strftime(format, now).ok()?.into()));
        Self { extra: dates.into_iter().filter_map(date).collect(), ..Self::new(now) }
    }
}

/// A conversation's text up to where the content of its last message ends. As in transformers, templates may cut off the space
/// around it.
fn unfinished(mut text: String, content: Option<&Json>) -> Result<String, TemplateError> {
    let content = content.and_then(Json::as_str).filter(|content| !content.trim().is_empty());
    let content = content.ok_or(TemplateError::NotRepeated)?;
    let place = text.rfind(content.trim()).ok_or(TemplateError::NotRepeated)?;
    let whole = content.trim_start();
    let kept = if text[place..].starts_with(whole) { whole } else { content.trim() };
    text.truncate(place + kept.len());
    Ok(text)
}

/// A key that is there, even if its value is null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}
