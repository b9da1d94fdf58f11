//! How Anthropic's messages are written.

use serde_json::{Value, json};

use crate::{
    api::{
        error::ApiError,
        relay::{Block, Framing, Line, Writer, arguments},
        vendor::Vendor,
    },
    text::{AnswerPart, CallEvent, TextEnd, TextEndReason},
};

/// Writes one message.
pub(super) struct MessageWriter {
    id: String,
    model: String,
    /// The block that has begun.
    open: Option<Open>,
    /// How many blocks have begun.
    begun: usize,
}

/// What a block is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Open {
    Thinking,
    Text,
    Call,
}

/// Whether the last call came to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Calls {
    Complete,
    CutOff,
}

impl MessageWriter {
    pub(super) fn new(id: String, model: String) -> Self {
        Self { id, model, open: None, begun: 0 }
    }

    fn message(&self, content: Value, stop: (Value, Value), usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop.0,
            "stop_sequence": stop.1,
            "usage": usage,
        })
    }

    /// Begins a block, unless it is the one that is open.
    fn enter(&mut self, kind: Open, block: Value) -> Vec<Line> {
        if self.open == Some(kind) {
            return Vec::new();
        }
        let mut lines = self.leave();
        self.open = Some(kind);
        let index = self.begun;
        self.begun += 1;
        lines.push(Line::typed(json!({"type": "content_block_start", "index": index, "content_block": block})));
        lines
    }

    /// Ends the block that is open.
    fn leave(&mut self) -> Vec<Line> {
        match self.open.take() {
            Some(_) => vec![Line::typed(json!({"type": "content_block_stop", "index": self.begun - 1}))],
            None => Vec::new(),
        }
    }

    fn delta(&self, delta: Value) -> Line {
        Line::typed(json!({"type": "content_block_delta", "index": self.begun.saturating_sub(1), "delta": delta}))
    }
}

impl Writer for MessageWriter {
    const FRAMING: Framing = Framing::Events;

    fn open(&mut self, prompt_tokens: usize) -> Vec<Line> {
        // How much of the prompt was there already is not known yet.
        let message = self.message(json!([]), (Value::Null, Value::Null), usage(prompt_tokens, 0, 0));
        vec![Line::typed(json!({"type": "message_start", "message": message})), Line::typed(json!({"type": "ping"}))]
    }

    fn part(&mut self, part: &AnswerPart) -> Vec<Line> {
        let (mut lines, delta) = match part {
            AnswerPart::Thought(text) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                (self.enter(Open::Thinking, block), json!({"type": "thinking_delta", "thinking": text}))
            }
            AnswerPart::Content(text) => {
                let block = json!({"type": "text", "text": ""});
                (self.enter(Open::Text, block), json!({"type": "text_delta", "text": text}))
            }
            AnswerPart::Call(CallEvent::Begun { id, name, .. }) => {
                let mut lines = self.leave();
                lines.extend(self.enter(Open::Call, json!({"type": "tool_use", "id": id, "name": name, "input": {}})));
                return lines;
            }
            AnswerPart::Call(CallEvent::Arguments { text, .. }) => {
                (Vec::new(), json!({"type": "input_json_delta", "partial_json": text}))
            }
            AnswerPart::Call(CallEvent::Ended { .. }) => return self.leave(),
        };
        lines.push(self.delta(delta));
        lines
    }

    fn close(&mut self, end: &TextEnd) -> Vec<Line> {
        let calls = if self.open == Some(Open::Call) { Calls::CutOff } else { Calls::Complete };
        let mut lines = self.leave();
        let (reason, stop) = stopped(end, calls);
        let delta = json!({"stop_reason": reason, "stop_sequence": stop});
        lines.push(Line::typed(json!({"type": "message_delta", "delta": delta, "usage": usage_of(end)})));
        lines.push(Line::typed(json!({"type": "message_stop"})));
        lines
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Line> {
        vec![Line::typed(Vendor::Anthropic.error(error))]
    }

    fn whole(self, blocks: Vec<Block>, end: &TextEnd) -> Value {
        let mut calls = Calls::Complete;
        let mut content = Vec::new();
        for block in blocks {
            content.extend(match block {
                Block::Thought(text) => Some(json!({"type": "thinking", "thinking": text, "signature": ""})),
                Block::Text(text) => Some(json!({"type": "text", "text": text})),
                Block::Call(call) => match arguments(&call) {
                    Some(input) => Some(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input})),
                    // Half of a call must not look like one; the reason says that something is missing.
                    None => {
                        calls = Calls::CutOff;
                        None
                    }
                },
            });
        }
        self.message(content.into(), stopped(end, calls), usage_of(end))
    }
}

/// Why an answer ended, and the stop string that ended it.
fn stopped(end: &TextEnd, calls: Calls) -> (Value, Value) {
    match (end.reason, calls) {
        (TextEndReason::EndToken, _) => ("end_turn".into(), Value::Null),
        (TextEndReason::Length, _) => ("max_tokens".into(), Value::Null),
        (TextEndReason::Calls, Calls::Complete) => ("tool_use".into(), Value::Null),
        // Nothing but a stop string ends an answer within a call and before its length.
        (TextEndReason::Calls, Calls::CutOff) | (TextEndReason::StopString, _) => {
            ("stop_sequence".into(), end.stop.clone().into())
        }
    }
}

fn usage_of(end: &TextEnd) -> Value {
    usage(end.prompt_tokens.saturating_sub(end.cached_tokens), end.cached_tokens, end.generated_tokens)
}

fn usage(input: usize, cached: usize, output: usize) -> Value {
    json!({
        "input_tokens": input,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    })
}
