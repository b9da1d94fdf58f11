//! What the answer to a chat looks like.

use qmesh_net::Sampled;
use serde_json::{Value, json};

use crate::{
    api::{
        answer::{Shape, finish_reason},
        choices::{Call, Whole},
    },
    text::{CallEvent, Spelled, TextDelta, TextEndReason, TokenDetail, TokenText, Visibility},
};

/// How the choices of a chat are written.
pub(super) struct ChatShape {
    pub(super) detail: TokenDetail,
    pub(super) dialect: Dialect,
}

/// By which of OpenAI's two names calls go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Dialect {
    /// `tool_calls`, any number of them.
    Tools,
    /// `function_call`, the only one, for older clients.
    Functions,
}

impl ChatShape {
    fn chunk(index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
    }

    fn logprobs(&self, tokens: &[TokenText]) -> Value {
        match self.detail {
            TokenDetail::Off => Value::Null,
            TokenDetail::On => {
                let shown = tokens.iter().filter(|token| token.visibility == Visibility::Shown);
                json!({"content": shown.map(token_logprob).collect::<Vec<_>>(), "refusal": null})
            }
        }
    }

    fn reason(&self, reason: TextEndReason) -> &'static str {
        match (reason, self.dialect) {
            (TextEndReason::Calls, Dialect::Functions) => "function_call",
            (reason, Dialect::Tools | Dialect::Functions) => finish_reason(reason),
        }
    }
}

impl Shape for ChatShape {
    const OBJECTS: (&'static str, &'static str) = ("chat.completion", "chat.completion.chunk");

    fn detail(&self) -> TokenDetail {
        self.detail
    }

    fn opening(&self, index: usize) -> Option<Value> {
        // No text has come yet, and an empty one would look like one that has.
        Some(Self::chunk(index, json!({"role": "assistant", "content": null}), Value::Null, None))
    }

    fn prompt(&self, index: usize, _: &[Sampled]) -> Value {
        self.silence(index)
    }

    fn silence(&self, index: usize) -> Value {
        Self::chunk(index, json!({}), Value::Null, None)
    }

    fn delta(&self, index: usize, delta: &TextDelta) -> Value {
        Self::chunk(index, json!({"content": delta.text}), self.logprobs(&delta.tokens), None)
    }

    fn thought(&self, index: usize, thought: &str) -> Option<Value> {
        Some(Self::chunk(index, json!({"reasoning_content": thought}), Value::Null, None))
    }

    fn call(&self, index: usize, event: &CallEvent) -> Option<Value> {
        let delta = match (event, self.dialect) {
            (CallEvent::Begun { index, id, name }, Dialect::Tools) => {
                let function = json!({"name": name, "arguments": ""});
                json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]})
            }
            (CallEvent::Arguments { index, text }, Dialect::Tools) => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
            (CallEvent::Begun { name, .. }, Dialect::Functions) => {
                json!({"function_call": {"name": name, "arguments": ""}})
            }
            (CallEvent::Arguments { text, .. }, Dialect::Functions) => json!({"function_call": {"arguments": text}}),
            (CallEvent::Ended { .. }, Dialect::Tools | Dialect::Functions) => return None,
        };
        Some(Self::chunk(index, delta, Value::Null, None))
    }

    fn end(&self, index: usize, reason: TextEndReason) -> Value {
        Self::chunk(index, json!({}), Value::Null, Some(self.reason(reason)))
    }

    fn whole(&self, index: usize, whole: &Whole) -> Value {
        // Clients take an empty text beside calls for something that was said.
        let silent = whole.text.is_empty() && !whole.calls.is_empty();
        let content = if silent { Value::Null } else { whole.text.as_str().into() };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !whole.thoughts.is_empty() {
            message["reasoning_content"] = whole.thoughts.as_str().into();
        }
        match (whole.calls.as_slice(), self.dialect) {
            ([], _) => {}
            (calls, Dialect::Tools) => message["tool_calls"] = calls.iter().map(tool_call).collect(),
            ([call, ..], Dialect::Functions) => message["function_call"] = function(call),
        }
        json!({
            "index": index,
            "message": message,
            "logprobs": self.logprobs(&whole.tokens),
            "finish_reason": self.reason(whole.reason),
        })
    }
}

fn tool_call(call: &Call) -> Value {
    json!({"id": call.id, "type": "function", "function": function(call)})
}

fn function(call: &Call) -> Value {
    json!({"name": call.name, "arguments": call.arguments})
}

fn token_logprob(token: &TokenText) -> Value {
    let one =
        |Spelled { text, bytes, .. }: &Spelled, logprob| json!({"token": text, "logprob": logprob, "bytes": bytes});
    let mut entry = one(&token.spelled, token.logprob);
    entry["top_logprobs"] = token.top.iter().map(|(spelled, logprob)| one(spelled, Some(*logprob))).collect();
    entry
}
