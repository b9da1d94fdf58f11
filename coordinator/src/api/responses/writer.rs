//! How OpenAI's responses are written.

use serde_json::{Map, Value, json};

use crate::{
    api::{
        error::ApiError,
        relay::{Block, Framing, Line, Writer, arguments},
    },
    text::{AnswerPart, CallEvent, TextEnd, TextEndReason},
};

/// Writes one response.
pub(super) struct ResponseWriter {
    /// What all its ids have.
    id: String,
    /// As it was when it began.
    response: Value,
    /// The items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    /// How many events there were.
    events: usize,
}

/// The item that has begun, and its text or arguments so far.
struct Open {
    kind: ItemKind,
    id: String,
    text: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum ItemKind {
    Reasoning,
    Message,
    Call { id: String, name: String },
}

impl ResponseWriter {
    /// `response` is what it says in any case; `id` makes it and its items different from all others.
    pub(super) fn new(id: String, mut response: Value) -> Self {
        response["id"] = format!("resp_{id}").into();
        Self { id, response, output: Vec::new(), open: None, events: 0 }
    }

    fn event(&mut self, kind: &str, fields: Value) -> Line {
        let mut event =
            Map::from_iter([("type".to_owned(), kind.into()), ("sequence_number".to_owned(), self.events.into())]);
        self.events += 1;
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        Line::typed(event.into())
    }

    /// An event of the item that is open.
    fn item_event(&mut self, kind: &str, open: &Open, fields: Value) -> Line {
        let mut place = json!({"item_id": open.id, "output_index": self.output.len()});
        if open.kind.part("").is_some() {
            place["content_index"] = 0.into();
        }
        if let (Value::Object(place), Value::Object(fields)) = (&mut place, fields) {
            place.extend(fields);
        }
        self.event(kind, place)
    }

    /// Begins an item, unless one of its kind is open.
    fn enter(&mut self, kind: ItemKind) -> Vec<Line> {
        if self.open.as_ref().is_some_and(|open| open.kind == kind) {
            return Vec::new();
        }
        let mut lines = self.leave("completed");
        let index = self.output.len();
        let open = Open { id: format!("{}_{}{index:02x}", kind.prefix(), self.id), kind, text: String::new() };
        lines.push(
            self.event("response.output_item.added", json!({"output_index": index, "item": open.item("in_progress")})),
        );
        if let Some(part) = open.kind.part("") {
            lines.push(self.item_event("response.content_part.added", &open, json!({"part": part})));
        }
        self.open = Some(open);
        lines
    }

    /// The item that is open goes on.
    fn go_on(&mut self, more: &str) -> Vec<Line> {
        let Some(mut open) = self.open.take() else { return Vec::new() };
        open.text.push_str(more);
        let mut fields = json!({"delta": more});
        if open.kind == ItemKind::Message {
            fields["logprobs"] = json!([]);
        }
        let line = self.item_event(&format!("{}.delta", open.kind.word()), &open, fields);
        self.open = Some(open);
        vec![line]
    }

    /// Ends the item that is open.
    fn leave(&mut self, status: &str) -> Vec<Line> {
        let Some(open) = self.open.take() else { return Vec::new() };
        let fields = match &open.kind {
            ItemKind::Reasoning => json!({"text": open.text}),
            ItemKind::Message => json!({"text": open.text, "logprobs": []}),
            ItemKind::Call { name, .. } => json!({"name": name, "arguments": open.text}),
        };
        let mut lines = vec![self.item_event(&format!("{}.done", open.kind.word()), &open, fields)];
        if let Some(part) = open.kind.part(&open.text) {
            lines.push(self.item_event("response.content_part.done", &open, json!({"part": part})));
        }
        let item = open.item(status);
        lines.push(self.event("response.output_item.done", json!({"output_index": self.output.len(), "item": item})));
        self.output.push(item);
        lines
    }

    /// The response as it is now.
    fn stated(&self, status: &str) -> Value {
        let mut response = self.response.clone();
        response["status"] = status.into();
        response["output"] = self.output.clone().into();
        response
    }

    /// The response at its end.
    fn ended(&self, end: &TextEnd) -> Value {
        let mut response = self.stated(end_status(end));
        if end.reason == TextEndReason::Length {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["usage"] = json!({
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": end.cached_tokens},
            "output_tokens": end.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": end.thought_tokens},
            "total_tokens": end.prompt_tokens + end.generated_tokens,
        });
        response
    }
}

impl Writer for ResponseWriter {
    const FRAMING: Framing = Framing::Events;

    fn open(&mut self, _: usize) -> Vec<Line> {
        let response = self.stated("in_progress");
        let created = self.event("response.created", json!({"response": response}));
        vec![created, self.event("response.in_progress", json!({"response": response}))]
    }

    fn part(&mut self, part: &AnswerPart) -> Vec<Line> {
        let (mut lines, more) = match part {
            AnswerPart::Thought(text) => (self.enter(ItemKind::Reasoning), text),
            AnswerPart::Content(text) => (self.enter(ItemKind::Message), text),
            AnswerPart::Call(CallEvent::Begun { id, name, .. }) => {
                return self.enter(ItemKind::Call { id: id.clone(), name: name.clone() });
            }
            AnswerPart::Call(CallEvent::Arguments { text, .. }) => (Vec::new(), text),
            AnswerPart::Call(CallEvent::Ended { .. }) => return self.leave("completed"),
        };
        lines.extend(self.go_on(more));
        lines
    }

    fn close(&mut self, end: &TextEnd) -> Vec<Line> {
        let cut_off = self.open.as_ref().is_some_and(|open| matches!(open.kind, ItemKind::Call { .. }));
        let mut lines = self.leave(if cut_off { "incomplete" } else { end_status(end) });
        let response = self.ended(end);
        lines.push(self.event(&format!("response.{}", end_status(end)), json!({"response": response})));
        lines
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Line> {
        let mut response = self.stated("failed");
        response["error"] = json!({"code": "server_error", "message": error.to_string()});
        vec![self.event("response.failed", json!({"response": response}))]
    }

    fn whole(mut self, blocks: Vec<Block>, end: &TextEnd) -> Value {
        for block in blocks {
            match block {
                Block::Thought(text) => self.part(&AnswerPart::Thought(text)),
                Block::Text(text) => self.part(&AnswerPart::Content(text)),
                Block::Call(call) => {
                    let complete = arguments(&call).is_some();
                    self.enter(ItemKind::Call { id: call.id, name: call.name });
                    self.go_on(&call.arguments);
                    if complete { self.leave("completed") } else { Vec::new() }
                }
            };
        }
        self.close(end);
        self.ended(end)
    }
}

impl Open {
    fn item(&self, status: &str) -> Value {
        let content: Vec<Value> = match status {
            "in_progress" => Vec::new(),
            _ => self.kind.part(&self.text).into_iter().collect(),
        };
        match &self.kind {
            ItemKind::Reasoning => {
                json!({"id": self.id, "type": "reasoning", "summary": [], "content": content, "status": status})
            }
            ItemKind::Message => {
                json!({"id": self.id, "type": "message", "role": "assistant", "content": content, "status": status})
            }
            ItemKind::Call { id, name } => json!({
                "id": self.id,
                "type": "function_call",
                "call_id": id,
                "name": name,
                "arguments": self.text,
                "status": status,
            }),
        }
    }
}

impl ItemKind {
    /// What ids begin with.
    fn prefix(&self) -> &'static str {
        match self {
            Self::Reasoning => "rs",
            Self::Message => "msg",
            Self::Call { .. } => "fc",
        }
    }

    /// What its events are called.
    fn word(&self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text",
            Self::Message => "response.output_text",
            Self::Call { .. } => "response.function_call_arguments",
        }
    }

    /// The part that has the text, if texts are in parts.
    fn part(&self, text: &str) -> Option<Value> {
        match self {
            Self::Reasoning => Some(json!({"type": "reasoning_text", "text": text})),
            Self::Message => Some(json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})),
            Self::Call { .. } => None,
        }
    }
}

fn end_status(end: &TextEnd) -> &'static str {
    match end.reason {
        TextEndReason::EndToken | TextEndReason::StopString | TextEndReason::Calls => "completed",
        TextEndReason::Length => "incomplete",
    }
}
