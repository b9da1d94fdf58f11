//! The items of OpenAI's responses, as templates know them.

use qmesh_models::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::api::{
    chat::Transcript,
    error::ApiError,
    json::{Object, OneOrMany},
};

/// One item as it was sent.
#[derive(Debug, Deserialize)]
pub(super) struct SentItem {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    content: Option<OneOrMany<Object<SentPart>>>,
    call_id: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
    output: Option<OneOrMany<Object<SentPart>>>,
    summary: Option<Vec<Object<SentPart>>>,
}

#[derive(Debug, Deserialize)]
struct SentPart {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

/// The conversation, from the instructions to what is to be answered.
///
/// # Errors
/// `Invalid` with the place of what is wrong.
pub(super) fn transcript(
    instructions: Option<String>,
    input: Option<OneOrMany<Object<SentItem>>>,
) -> Result<Vec<Message>, ApiError> {
    let mut transcript = Transcript::default();
    if let Some(instructions) = instructions.filter(|instructions| !instructions.is_empty()) {
        transcript.say("system", instructions);
    }
    match input {
        Some(OneOrMany::One(text)) => transcript.say("user", text),
        Some(OneOrMany::Many(items)) if !items.is_empty() => {
            for (index, Object(item)) in items.into_iter().enumerate() {
                item.tell(&mut transcript, &format!("input[{index}]"))?;
            }
        }
        Some(OneOrMany::Many(_)) | None => {
            return Err(ApiError::invalid("input", "'input' must hold a text or at least one item"));
        }
    }
    Ok(transcript.into_messages())
}

impl SentItem {
    fn tell(self, transcript: &mut Transcript, place: &str) -> Result<(), ApiError> {
        let missing = |field: &str| {
            ApiError::invalid(format!("{place}.{field}"), format!("an item like this needs its '{field}'"))
        };
        match self.kind.as_deref() {
            None | Some("message") => {
                let role = match self.role.as_deref() {
                    Some("system" | "developer") => "system",
                    Some("user") => "user",
                    Some("assistant") => "assistant",
                    Some(_) | None => {
                        let text = "the 'role' of a message is one of system, developer, user and assistant";
                        return Err(ApiError::invalid(format!("{place}.role"), text));
                    }
                };
                let content = self.content.ok_or_else(|| missing("content"))?;
                transcript.say(role, text_of(content, &format!("{place}.content"))?);
            }
            Some("function_call") => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let name = self.name.ok_or_else(|| missing("name"))?;
                transcript.call(&id, &name, read_arguments(self.arguments.unwrap_or_default()));
            }
            Some("function_call_output") => {
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                let output = self.output.ok_or_else(|| missing("output"))?;
                transcript.result(&id, text_of(output, &format!("{place}.output"))?);
            }
            Some("reasoning") => transcript.think(&self.thoughts()),
            Some(_) => {
                let text = "items are of type message, function_call, function_call_output and reasoning";
                return Err(ApiError::invalid(format!("{place}.type"), text));
            }
        }
        Ok(())
    }

    /// The text of thoughts, or else what another server says that they were about. What is encrypted is for others.
    fn thoughts(self) -> String {
        let content = match self.content {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => return text,
            Some(OneOrMany::Many(parts)) => parts,
        };
        let parts = if content.is_empty() { self.summary.unwrap_or_default() } else { content };
        let texts = parts.into_iter().filter_map(|Object(part)| part.text);
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
    }
}

/// The arguments as templates read them: as JSON, if they are.
fn read_arguments(text: String) -> Value {
    match serde_json::from_str::<Map<String, Value>>(&text) {
        Ok(arguments) => arguments.into(),
        Err(_) if text.is_empty() => Map::new().into(),
        Err(_) => text.into(),
    }
}

/// A text that may have come in parts, a line each.
fn text_of(texts: OneOrMany<Object<SentPart>>, place: &str) -> Result<String, ApiError> {
    let parts = match texts {
        OneOrMany::One(text) => return Ok(text),
        OneOrMany::Many(parts) => parts,
    };
    let texts = parts.into_iter().enumerate().map(|(number, Object(part))| match (part.kind.as_deref(), part.text) {
        (Some("input_text" | "output_text" | "text"), Some(text)) => Ok(text),
        (Some("input_text" | "output_text" | "text"), None) => {
            Err(ApiError::invalid(format!("{place}[{number}].text"), "a text part needs 'text'"))
        }
        _ => Err(ApiError::invalid(
            format!("{place}[{number}].type"),
            "parts are of type input_text and output_text: this server takes no images, audio or files",
        )),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
