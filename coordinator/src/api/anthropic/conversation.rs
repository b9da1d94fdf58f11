//! The messages of Anthropic's API, as templates know them.

use std::mem;

use qmesh_models::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api::{
    chat::Transcript,
    error::ApiError,
    json::{Object, OneOrMany},
};

/// A text, or blocks.
pub(super) type Texts = OneOrMany<Object<SentBlock>>;

/// One message as it was sent.
#[derive(Debug, Deserialize)]
pub(super) struct SentMessage {
    role: Option<String>,
    content: Option<Texts>,
}

/// One block of a message, of whatever type.
#[derive(Debug, Deserialize)]
pub(super) struct SentBlock {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    content: Option<OneOrMany<Object<Self>>>,
    is_error: Option<bool>,
}

/// The conversation, from what the system says to the message that is to be answered, with the thoughts of the last
/// `thinking_turns` turns that have some.
///
/// # Errors
/// `Invalid` with the place of what is wrong.
pub(super) fn transcript(
    system: Option<Texts>,
    messages: Option<Vec<Object<SentMessage>>>,
    thinking_turns: usize,
) -> Result<Vec<Message>, ApiError> {
    let mut transcript = Transcript::default();
    if let Some(system) = system {
        transcript.say("system", text_of(system, "system")?);
    }
    let messages = messages.unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must hold at least one message"));
    }
    for (index, Object(message)) in messages.into_iter().enumerate() {
        message.tell(&mut transcript, &format!("messages[{index}]"))?;
    }
    transcript.keep_thoughts(thinking_turns);
    Ok(transcript.into_messages())
}

impl SentMessage {
    fn tell(self, transcript: &mut Transcript, place: &str) -> Result<(), ApiError> {
        let role = match self.role.as_deref() {
            Some("user") => "user",
            Some("assistant") => "assistant",
            Some("system") => "system",
            Some(_) | None => {
                let text = "the 'role' of a message is user or assistant";
                return Err(ApiError::invalid(format!("{place}.role"), text));
            }
        };
        let blocks = match self.content {
            Some(OneOrMany::One(text)) => {
                transcript.say(role, text);
                return Ok(());
            }
            Some(OneOrMany::Many(blocks)) if !blocks.is_empty() => blocks,
            Some(OneOrMany::Many(_)) | None => {
                return Err(ApiError::invalid(format!("{place}.content"), "a message needs a 'content'"));
            }
        };
        let mut texts = Vec::new();
        for (number, Object(block)) in blocks.into_iter().enumerate() {
            let place = format!("{place}.content[{number}]");
            match (block.kind.as_deref(), role) {
                (Some("text"), _) => texts.push(block.text_at(&place)?),
                (Some("thinking"), "assistant") => {
                    flush(transcript, role, &mut texts);
                    transcript.think(&block.thinking.unwrap_or_default());
                }
                // Only who wrote them can read them.
                (Some("redacted_thinking"), "assistant") => {}
                (Some("tool_use"), "assistant") => {
                    flush(transcript, role, &mut texts);
                    block.call(transcript, &place)?;
                }
                (Some("tool_result"), "user") => {
                    flush(transcript, role, &mut texts);
                    block.result(transcript, &place)?;
                }
                _ => return Err(refused(&place, role)),
            }
        }
        flush(transcript, role, &mut texts);
        Ok(())
    }
}

impl SentBlock {
    fn text_at(self, place: &str) -> Result<String, ApiError> {
        self.text.ok_or_else(|| ApiError::invalid(format!("{place}.text"), "a text block needs 'text'"))
    }

    fn call(self, transcript: &mut Transcript, place: &str) -> Result<(), ApiError> {
        let missing =
            |field: &str| ApiError::invalid(format!("{place}.{field}"), format!("a call needs its '{field}'"));
        let (id, name) = (self.id.ok_or_else(|| missing("id"))?, self.name.ok_or_else(|| missing("name"))?);
        match self.input.unwrap_or_else(|| Map::new().into()) {
            input @ Value::Object(_) => transcript.call(&id, &name, input),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(ApiError::invalid(format!("{place}.input"), "the 'input' of a call is an object"));
            }
        }
        Ok(())
    }

    fn result(self, transcript: &mut Transcript, place: &str) -> Result<(), ApiError> {
        let Some(id) = self.tool_use_id else {
            let text = "the result of a call needs the 'tool_use_id' of it";
            return Err(ApiError::invalid(format!("{place}.tool_use_id"), text));
        };
        let text = self.content.map_or(Ok(String::new()), |content| text_of(content, &format!("{place}.content")))?;
        // Templates know no failed calls.
        let failed = self.is_error == Some(true);
        transcript.result(&id, if failed { format!("Error: {text}") } else { text });
        Ok(())
    }
}

/// A text that may have come in blocks, a line each.
fn text_of(texts: Texts, place: &str) -> Result<String, ApiError> {
    let blocks = match texts {
        OneOrMany::One(text) => return Ok(text),
        OneOrMany::Many(blocks) => blocks,
    };
    let texts = blocks.into_iter().enumerate().map(|(number, Object(block))| {
        let place = format!("{place}[{number}]");
        if block.kind.as_deref() == Some("text") { block.text_at(&place) } else { Err(refused(&place, "system")) }
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// What has been said so far becomes a message.
fn flush(transcript: &mut Transcript, role: &str, texts: &mut Vec<String>) {
    if !texts.is_empty() {
        transcript.say(role, mem::take(texts).join("\n"));
    }
}

fn refused(place: &str, role: &str) -> ApiError {
    let known = match role {
        "assistant" => "text, thinking and tool_use",
        "user" => "text and tool_result",
        _ => "text",
    };
    let text = format!("blocks here are of type {known}: this server takes no images, documents or searches");
    ApiError::invalid(format!("{place}.type"), text)
}
