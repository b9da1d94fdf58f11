//! The messages of a chat, as clients send them and as templates know them.

use qmesh_models::chat::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::{
    error::ApiError,
    json::{Object, OneOrMany},
};

/// One message as it was sent.
#[derive(Debug, Deserialize)]
pub(super) struct ChatMessage {
    role: Option<String>,
    content: Option<OneOrMany<Object<Part>>>,
    name: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
    /// The one call of an older client.
    function_call: Option<Value>,
    /// Thoughts by the names that servers and templates have for them.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    thinking: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

/// The messages as templates know them.
///
/// # Errors
/// `Invalid` with the place of what is wrong.
pub(super) fn templated(messages: Option<Vec<Object<ChatMessage>>>) -> Result<Vec<Message>, ApiError> {
    let messages = messages.unwrap_or_default();
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must hold at least one message"));
    }
    messages.into_iter().enumerate().map(|(index, Object(message))| message.templated(index)).collect()
}

impl ChatMessage {
    /// Message `index` as templates know it.
    fn templated(self, index: usize) -> Result<Message, ApiError> {
        let role = templated_role(index, self.role.as_deref())?;
        let older = self.function_call.map(|call| vec![json!({"type": "function", "function": call})]);
        let calls = self.tool_calls.or(older).filter(|calls| !calls.is_empty());
        let content = match self.content {
            Some(OneOrMany::One(text)) => Value::from(text),
            Some(OneOrMany::Many(parts)) => Value::from(joined(index, &parts)?),
            None if role == "assistant" && calls.is_some() => Value::Null,
            None => {
                return Err(ApiError::invalid(format!("messages[{index}].content"), "a message needs a 'content'"));
            }
        };
        let texts = [
            ("name", self.name),
            ("tool_call_id", self.tool_call_id),
            ("reasoning_content", self.reasoning_content),
            ("reasoning", self.reasoning),
            ("thinking", self.thinking),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?))));
        let calls = calls.map(|calls| ("tool_calls".to_owned(), calls.into_iter().map(templated_call).collect()));
        Ok(Message { role: role.to_owned(), content: Some(content), extra: texts.chain(calls).collect() })
    }
}

/// The role of message `index` as templates know it.
fn templated_role(index: usize, role: Option<&str>) -> Result<&'static str, ApiError> {
    match role {
        // What OpenAI calls its newer system messages; templates know only the older name.
        Some("system" | "developer") => Ok("system"),
        Some("user") => Ok("user"),
        Some("assistant") => Ok("assistant"),
        // The older name of the same.
        Some("tool" | "function") => Ok("tool"),
        Some(_) | None => Err(ApiError::invalid(
            format!("messages[{index}].role"),
            "the 'role' of a message is one of system, developer, user, assistant and tool",
        )),
    }
}

/// A tool call as templates know it: OpenAI writes arguments as a text that holds JSON, templates read the JSON itself.
fn templated_call(mut call: Value) -> Value {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
    {
        *arguments = Value::Object(object);
    }
    call
}

/// The text of the parts of message `index`, a line each.
fn joined(index: usize, parts: &[Object<Part>]) -> Result<String, ApiError> {
    let texts = parts.iter().enumerate().map(|(place, Object(part))| match (part.kind.as_deref(), &part.text) {
        (Some("text"), Some(text)) => Ok(text.as_str()),
        (Some("text"), None) => {
            Err(ApiError::invalid(format!("messages[{index}].content[{place}].text"), "a text part needs 'text'"))
        }
        _ => Err(ApiError::invalid(
            format!("messages[{index}].content[{place}].type"),
            "only parts of type 'text' are supported: this server takes no images, audio or files",
        )),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_read_the_arguments_of_a_call_as_json() {
        let call = |arguments: Value| json!({"id": "1", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(templated_call(call(json!("{\"a\": [1.5]}"))), call(json!({"a": [1.5]})));
        for as_it_is in [call(json!({"a": 1})), call(json!("[1]")), call(json!("{a")), json!({}), json!(3)] {
            assert_eq!(templated_call(as_it_is.clone()), as_it_is);
        }
    }
}
