//! A conversation that is put together from pieces, for dialects whose messages are not those of templates.

use qmesh_models::chat::Message;
use serde_json::{Value, json};

/// A conversation so far.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    messages: Vec<Message>,
    /// What the assistant thinks before what it says or calls next.
    thoughts: String,
}

/// Where templates find thoughts.
const THOUGHTS: &str = "reasoning_content";

impl Transcript {
    /// Somebody says something. What one of them says in a row is one message: many templates want them to take turns.
    pub(crate) fn say(&mut self, role: &str, text: String) {
        match self.messages.last_mut() {
            Some(last) if last.role == role && !last.extra.contains_key("tool_calls") => match &mut last.content {
                Some(Value::String(said)) if !said.is_empty() => {
                    said.push_str("\n\n");
                    said.push_str(&text);
                }
                content => *content = Some(text.into()),
            },
            _ => self.messages.push(Message::new(role, text)),
        }
        self.settle();
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
        self.settle();
    }

    /// The assistant thinks, before it says or calls something: thoughts that nothing comes of are left out.
    pub(crate) fn think(&mut self, thoughts: &str) {
        append(&mut self.thoughts, thoughts);
    }

    /// What came of a call.
    pub(crate) fn result(&mut self, id: &str, text: String) {
        let mut message = Message::new("tool", text);
        message.extra.insert("tool_call_id".to_owned(), id.into());
        self.messages.push(message);
        self.settle();
    }

    /// Whose the last message is.
    pub(crate) fn last_role(&self) -> Option<&str> {
        self.messages.last().map(|last| last.role.as_str())
    }

    /// Leaves the assistant its thoughts in so many of the last turns that have some; a turn goes from what a user says to what the
    /// next one does.
    pub(crate) fn keep_thoughts(&mut self, turns: usize) {
        let (mut seen, mut counted) = (0, false);
        for message in self.messages.iter_mut().rev() {
            if message.role == "user" {
                counted = false;
            }
            if message.extra.contains_key(THOUGHTS) {
                seen += usize::from(!counted);
                counted = true;
                if seen > turns {
                    message.extra.remove(THOUGHTS);
                }
            }
        }
    }

    /// The messages as templates know them.
    pub(crate) fn into_messages(self) -> Vec<Message> {
        self.messages
    }

    /// The assistant's message at the end, silent so far if there was none.
    fn assistant(&mut self) -> &mut Message {
        let new = self.last_role() != Some("assistant");
        let place = if new { self.messages.len() } else { self.messages.len() - 1 };
        if new {
            self.messages.push(Message { content: Some(Value::Null), ..Message::new("assistant", "") });
        }
        &mut self.messages[place]
    }

    /// What was thought belongs to what the assistant has said or called now, and to nothing that others say.
    fn settle(&mut self) {
        let thoughts = std::mem::take(&mut self.thoughts);
        let Some(last) = self.messages.last_mut().filter(|last| last.role == "assistant") else { return };
        if thoughts.is_empty() {
            return;
        }
        match last.extra.get_mut(THOUGHTS) {
            Some(Value::String(before)) => append(before, &thoughts),
            _ => drop(last.extra.insert(THOUGHTS.to_owned(), thoughts.into())),
        }
    }
}

/// More of a text, apart from what there is of it.
fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("\n\n");
    }
    text.push_str(more);
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

    #[test]
    fn thoughts_go_with_what_comes_of_them() {
        let mut transcript = Transcript::default();
        transcript.think("dropped");
        transcript.say("user", "x".to_owned());
        transcript.think("one");
        transcript.think("two");
        transcript.call("1", "f", json!({}));
        transcript.think("three");
        transcript.call("2", "f", json!({}));
        transcript.result("1", "r".to_owned());
        transcript.think("four");
        transcript.say("assistant", "Done.".to_owned());
        transcript.say("user", "y".to_owned());
        transcript.think("five");
        transcript.say("assistant", "Again.".to_owned());
        transcript.think("nothing came of it");
        let thoughts = |transcript: &Transcript| {
            let thoughts = transcript.messages.iter().filter_map(|message| message.extra.get(THOUGHTS)?.as_str());
            thoughts.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(thoughts(&transcript), ["one\n\ntwo\n\nthree", "four", "five"]);
        transcript.keep_thoughts(2);
        assert_eq!(thoughts(&transcript).len(), 3, "both turns have their thoughts");
        transcript.keep_thoughts(1);
        assert_eq!(thoughts(&transcript), ["five"]);
        assert_eq!(transcript.into_messages().len(), 6);
    }
}
