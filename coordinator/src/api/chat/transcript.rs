//! A conversation that is put together from pieces, for dialects whose messages are not those of templates.

use qmesh_models::chat::Message;
use serde_json::{Value, json};

/// A conversation so far.
#[derive(Debug, Default)]
pub(crate) struct Transcript(Vec<Message>);

impl Transcript {
    /// Somebody says something. What one of them says in a row is one message: many templates want them to take turns.
    pub(crate) fn say(&mut self, role: &str, text: String) {
        match self.0.last_mut() {
            Some(last) if last.role == role && !last.extra.contains_key("tool_calls") => match &mut last.content {
                Some(Value::String(said)) if !said.is_empty() => {
                    said.push_str("\n\n");
                    said.push_str(&text);
                }
                content => *content = Some(text.into()),
            },
            _ => self.0.push(Message::new(role, text)),
        }
    }

    /// The assistant calls a tool, as part of what it said last.
    pub(crate) fn call(&mut self, id: &str, name: &str, arguments: Value) {
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let last = self.assistant();
        match last.extra.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) => calls.push(call),
            None => {
                last.extra.insert("tool_calls".to_owned(), json!([call]));
            }
        }
    }

    /// What the assistant thought, as part of what it said last.
    pub(crate) fn think(&mut self, thoughts: String) {
        self.assistant().extra.insert("reasoning_content".to_owned(), thoughts.into());
    }

    /// What came of a call.
    pub(crate) fn result(&mut self, id: &str, text: String) {
        let mut message = Message::new("tool", text);
        message.extra.insert("tool_call_id".to_owned(), id.into());
        self.0.push(message);
    }

    /// Whose the last message is.
    pub(crate) fn last_role(&self) -> Option<&str> {
        self.0.last().map(|last| last.role.as_str())
    }

    /// The messages as templates know them.
    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.0
    }

    /// The assistant's message at the end, silent so far if there was none.
    fn assistant(&mut self) -> &mut Message {
        let new = self.last_role() != Some("assistant");
        let place = if new { self.0.len() } else { self.0.len() - 1 };
        if new {
            self.0.push(Message { content: Some(Value::Null), ..Message::new("assistant", "") });
        }
        &mut self.0[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken() {
        let mut transcript = Transcript::default();
        transcript.say("system", "a".to_owned());
        transcript.say("system", "b".to_owned());
        transcript.say("assistant", "I look.".to_owned());
        transcript.call("1", "f", json!({"x": 1}));
        transcript.call("2", "f", json!({}));
        transcript.result("1", "one".to_owned());
        assert_eq!(transcript.last_role(), Some("tool"));
        transcript.call("3", "g", json!({}));
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let looked = [call("1", "f", json!({"x": 1})), call("2", "f", json!({}))];
        let messages = serde_json::to_value(transcript.into_messages()).unwrap();
        assert_eq!(
            messages,
            json!([
                {"role": "system", "content": "a\n\nb"},
                {"role": "assistant", "content": "I look.", "tool_calls": looked},
                {"role": "tool", "content": "one", "tool_call_id": "1"},
                {"role": "assistant", "content": null, "tool_calls": [call("3", "g", json!({}))]},
            ])
        );
    }
}
