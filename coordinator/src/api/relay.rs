//! An answer with one choice on its way out, for dialects that write it in pieces of their own.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    Json,
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response, sse::Event},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::{
    answer::events,
    choices::{Call, ChoiceEvent, Choices},
    error::ApiError,
    params::Delivery,
};
use crate::{
    generate::GenerateError,
    text::{AnswerPart, CallEvent, TextEnd},
};

/// One line of a streamed answer.
#[derive(Debug)]
pub(crate) struct Line {
    /// What server-sent events call it, if they do.
    pub(crate) event: Option<String>,
    pub(crate) json: Value,
}

/// What stands around the lines of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// Server-sent events.
    Events,
    /// Nothing: a line of JSON each.
    Lines,
}

/// How a dialect writes an answer.
pub(crate) trait Writer: Send + 'static {
    /// What stands around the lines of its streams.
    const FRAMING: Framing;

    /// What a stream begins with.
    fn open(&mut self, prompt_tokens: usize) -> Vec<Line>;
    /// What it says as the answer goes on.
    fn part(&mut self, part: &AnswerPart) -> Vec<Line>;
    /// What it ends with.
    fn close(&mut self, end: &TextEnd) -> Vec<Line>;
    /// What it ends with if the answer fails.
    fn fail(&mut self, error: &ApiError) -> Vec<Line>;
    /// A complete answer.
    fn whole(self, blocks: Vec<Block>, end: &TextEnd) -> Value;
}

/// A piece of a complete answer.
#[derive(Debug)]
pub(crate) enum Block {
    Thought(String),
    Text(String),
    Call(Call),
}

/// Sends the answer in the way asked for.
///
/// # Errors
/// Whatever fails before the first byte is out; what fails later is the stream's last line.
pub(crate) async fn relay<W: Writer>(
    mut choices: Choices,
    mut writer: W,
    delivery: Delivery,
) -> Result<Response, ApiError> {
    if delivery == Delivery::Whole {
        let (blocks, end) = whole(&mut choices).await?;
        return Ok(Json(writer.whole(blocks, &end)).into_response());
    }
    let choices = choices.begun().await?;
    let ready = writer.open(choices.prompt_tokens()).into();
    let outgoing = Outgoing { choices: Some(choices), writer, ready };
    let next = async |mut outgoing: Outgoing<W>| outgoing.next().await.map(|line| (line, outgoing));
    let lines = stream::unfold(outgoing, next);
    Ok(match W::FRAMING {
        Framing::Events => events(lines.map(Line::into_event)),
        Framing::Lines => unframed(lines.map(Line::into_bytes)),
    })
}

/// The arguments of a call, unless the answer was cut off within them.
pub(crate) fn arguments(call: &Call) -> Option<Value> {
    serde_json::from_str(&call.arguments).ok()
}

impl Line {
    /// A line that says itself what it is.
    pub(crate) fn plain(json: Value) -> Self {
        Self { event: None, json }
    }

    /// A line whose `type` is its event's name as well.
    pub(crate) fn typed(json: Value) -> Self {
        Self { event: json["type"].as_str().map(str::to_owned), json }
    }

    fn into_event(self) -> Event {
        // Some clients read the lines of an event in this order only.
        let event = self.event.map_or_else(Event::default, |name| Event::default().event(name));
        event.data(self.json.to_string())
    }

    fn into_bytes(self) -> Bytes {
        format!("{}\n", self.json).into()
    }
}

/// A stream's lines, made as they are asked for: a reader that stays behind is felt by the mesh.
struct Outgoing<W> {
    /// Gone once the answer has ended.
    choices: Option<Choices>,
    writer: W,
    ready: VecDeque<Line>,
}

impl<W: Writer> Outgoing<W> {
    async fn next(&mut self) -> Option<Line> {
        while self.ready.is_empty() {
            let lines = match self.choices.as_mut()?.next().await {
                Ok(Some((_, ChoiceEvent::End(end)))) => {
                    self.choices = None;
                    self.writer.close(&end)
                }
                Ok(Some((_, event))) => part(event).map_or_else(Vec::new, |part| self.writer.part(&part)),
                Ok(None) => {
                    self.choices = None;
                    self.writer.fail(&unended())
                }
                Err(error) => {
                    self.choices = None;
                    self.writer.fail(&error)
                }
            };
            self.ready.extend(lines);
        }
        self.ready.pop_front()
    }
}

/// Waits for all of an answer.
async fn whole(choices: &mut Choices) -> Result<(Vec<Block>, TextEnd), ApiError> {
    let mut blocks = Vec::new();
    while let Some((_, event)) = choices.next().await? {
        if let ChoiceEvent::End(end) = event {
            return Ok((blocks, end));
        }
        if let Some(part) = part(event) {
            add(&mut blocks, part);
        }
    }
    Err(unended())
}

/// Adds a part to what there is, as one with the last where both are of the same kind.
fn add(blocks: &mut Vec<Block>, part: AnswerPart) {
    match (part, blocks.last_mut()) {
        (AnswerPart::Thought(more), Some(Block::Thought(text)))
        | (AnswerPart::Content(more), Some(Block::Text(text))) => {
            text.push_str(&more);
        }
        (AnswerPart::Call(CallEvent::Arguments { text, .. }), Some(Block::Call(call))) => {
            call.arguments.push_str(&text)
        }
        (AnswerPart::Thought(text), _) => blocks.push(Block::Thought(text)),
        (AnswerPart::Content(text), _) => blocks.push(Block::Text(text)),
        (AnswerPart::Call(CallEvent::Begun { id, name, .. }), _) => {
            blocks.push(Block::Call(Call { id, name, arguments: String::new() }));
        }
        (AnswerPart::Call(CallEvent::Arguments { .. } | CallEvent::Ended { .. }), _) => {}
    }
}

fn part(event: ChoiceEvent) -> Option<AnswerPart> {
    match event {
        ChoiceEvent::Delta(delta) if !delta.text.is_empty() => Some(AnswerPart::Content(delta.text)),
        ChoiceEvent::Thought(thought) => Some(AnswerPart::Thought(thought)),
        ChoiceEvent::Call(call) => Some(AnswerPart::Call(call)),
        ChoiceEvent::Delta(_) | ChoiceEvent::Prompt(_) | ChoiceEvent::Progress(_) | ChoiceEvent::End(_) => None,
    }
}

fn unended() -> ApiError {
    GenerateError::Fault { text: "the answer was cut off".to_owned() }.into()
}

/// Lines without anything around them. No comment can keep such a stream alive.
fn unframed(lines: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
    let kind = HeaderValue::from_static("application/x-ndjson");
    // Reverse proxies would collect tokens into pages.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    ([(header::CONTENT_TYPE, kind), unbuffered], body).into_response()
}
