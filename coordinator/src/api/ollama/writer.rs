//! How Ollama writes answers.

use std::time::{Duration, Instant, SystemTime};

use qmesh_models::chat::date::strftime;
use serde_json::{Value, json};

use crate::{
    api::{
        choices::Call,
        error::ApiError,
        relay::{Block, Framing, Line, Writer, arguments},
        vendor::Vendor,
    },
    text::{AnswerPart, CallEvent, TextEnd, TextEndReason},
};

/// Writes one answer.
pub(super) struct AnswerWriter {
    manner: Manner,
    model: String,
    started: Instant,
    /// The call that has begun: it goes out as a whole.
    call: Option<Call>,
}

/// Where an answer's text is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Manner {
    /// In a `message`.
    Chat,
    /// In a `response`.
    Generate,
}

/// A moment as Ollama writes one.
pub(super) fn stamp(time: SystemTime) -> String {
    // The format is one that it knows.
    strftime("%Y-%m-%dT%H:%M:%SZ", time).unwrap_or_default()
}

impl AnswerWriter {
    pub(super) fn new(manner: Manner, model: String) -> Self {
        Self { manner, model, started: Instant::now(), call: None }
    }

    /// What is said to who asks for nothing but the model to be there.
    pub(super) fn loaded(&self) -> Value {
        let mut object = self.object("", "", &[]);
        object["done"] = true.into();
        object["done_reason"] = "load".into();
        object
    }

    fn object(&self, text: &str, thoughts: &str, calls: &[Call]) -> Value {
        let mut object = json!({"model": self.model, "created_at": stamp(SystemTime::now())});
        let holder = match self.manner {
            Manner::Chat => {
                object["message"] = json!({"role": "assistant", "content": text});
                &mut object["message"]
            }
            Manner::Generate => {
                object["response"] = text.into();
                &mut object
            }
        };
        if !thoughts.is_empty() {
            holder["thinking"] = thoughts.into();
        }
        // Half of a call must not look like one.
        let whole = |call: &Call| {
            let function = json!({"name": call.name, "arguments": arguments(call)?});
            Some(json!({"id": call.id, "function": function}))
        };
        let calls: Vec<Value> = calls.iter().filter_map(whole).collect();
        if !calls.is_empty() {
            holder["tool_calls"] = calls.into();
        }
        object["done"] = false.into();
        object
    }

    fn finished(&self, mut object: Value, end: &TextEnd) -> Value {
        let reason = match end.reason {
            TextEndReason::EndToken | TextEndReason::StopString | TextEndReason::Calls => "stop",
            TextEndReason::Length => "length",
        };
        let fields = [
            ("done", true.into()),
            ("done_reason", reason.into()),
            ("total_duration", nanoseconds(self.started.elapsed())),
            ("load_duration", 0.into()),
            ("prompt_eval_count", end.prompt_tokens.into()),
            ("prompt_eval_duration", nanoseconds(end.prefill)),
            ("eval_count", end.generated_tokens.into()),
            ("eval_duration", nanoseconds(end.decode)),
        ];
        for (name, value) in fields {
            object[name] = value;
        }
        object
    }
}

impl Writer for AnswerWriter {
    const FRAMING: Framing = Framing::Lines;

    fn open(&mut self, _: usize) -> Vec<Line> {
        Vec::new()
    }

    fn part(&mut self, part: &AnswerPart) -> Vec<Line> {
        let object = match part {
            AnswerPart::Content(text) => self.object(text, "", &[]),
            AnswerPart::Thought(thoughts) => self.object("", thoughts, &[]),
            AnswerPart::Call(CallEvent::Begun { id, name, .. }) => {
                self.call = Some(Call { id: id.clone(), name: name.clone(), arguments: String::new() });
                return Vec::new();
            }
            AnswerPart::Call(CallEvent::Arguments { text, .. }) => {
                if let Some(call) = &mut self.call {
                    call.arguments.push_str(text);
                }
                return Vec::new();
            }
            AnswerPart::Call(CallEvent::Ended { .. }) => {
                let call = self.call.take();
                self.object("", "", call.as_slice())
            }
        };
        vec![Line::plain(object)]
    }

    fn close(&mut self, end: &TextEnd) -> Vec<Line> {
        vec![Line::plain(self.finished(self.object("", "", &[]), end))]
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Line> {
        vec![Line::plain(Vendor::Ollama.error(error))]
    }

    fn whole(self, blocks: Vec<Block>, end: &TextEnd) -> Value {
        let (mut text, mut thoughts, mut calls) = (String::new(), String::new(), Vec::new());
        for block in blocks {
            match block {
                Block::Thought(more) => thoughts.push_str(&more),
                Block::Text(more) => text.push_str(&more),
                Block::Call(call) => calls.push(call),
            }
        }
        self.finished(self.object(&text, &thoughts, &calls), end)
    }
}

fn nanoseconds(time: Duration) -> Value {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).into()
}
