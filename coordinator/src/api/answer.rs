//! An answer on its way out: one JSON object, or server-sent events.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use qmesh_net::Sampled;
use serde_json::{Value, json};

use super::{
    choices::{ChoiceEvent, Choices, Whole},
    error::ApiError,
    params::{Delivery, ShownTimings},
    timings::{Progress, Timings},
};
use crate::text::{CallEvent, TextDelta, TextEndReason, TokenDetail};

/// Silence after which a stream carries a comment, so that nothing between here and the client gives up on it.
const PING: Duration = Duration::from_secs(10);

/// How one kind of completion writes its choices.
pub(crate) trait Shape: Send + 'static {
    /// The `object` of a whole answer, and that of a chunk.
    const OBJECTS: (&'static str, &'static str);

    /// Whether chunks show the tokens of their text.
    fn detail(&self) -> TokenDetail;
    /// The choice of a stream's first chunk, if it has one.
    fn opening(&self, index: usize) -> Option<Value>;
    /// The choice of a chunk with the prompt's rows.
    fn prompt(&self, index: usize, rows: &[Sampled]) -> Value;
    /// The choice of a chunk without any text.
    fn silence(&self, index: usize) -> Value;
    /// The choice of a chunk with text.
    fn delta(&self, index: usize, delta: &TextDelta) -> Value;
    /// The choice of a chunk with thoughts, where they are told apart.
    fn thought(&self, _index: usize, _thought: &str) -> Option<Value> {
        None
    }
    /// The choice of a chunk with a part of a call, where calls are told apart.
    fn call(&self, _index: usize, _event: &CallEvent) -> Option<Value> {
        None
    }
    /// The choice of a choice's last chunk.
    fn end(&self, index: usize, reason: TextEndReason) -> Value;
    /// A complete choice.
    fn whole(&self, index: usize, whole: &Whole) -> Value;
}

/// What every object of an answer says.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) created_s: u64,
    pub(crate) model: String,
    /// The prompt, where the client wants to see it in a whole answer, as llama-server shows it.
    pub(crate) shown_prompt: Option<String>,
}

/// Sends the answer in the way asked for.
///
/// # Errors
/// Whatever fails before the first byte is out; what fails later is the stream's last event.
pub(crate) async fn answer<S: Shape>(
    mut choices: Choices,
    shape: S,
    envelope: Envelope,
    delivery: Delivery,
    timings: ShownTimings,
) -> Result<Response, ApiError> {
    if delivery == Delivery::Whole {
        let wholes = choices.wholes().await?;
        let listed = wholes.iter().enumerate().map(|(index, whole)| shape.whole(index, whole)).collect();
        let mut object = envelope.object(S::OBJECTS.0, listed);
        object["usage"] = choices.usage();
        object["timings"] = choices.timings().json();
        if let Some(prompt) = &envelope.shown_prompt {
            object["__verbose"] = json!({"prompt": prompt});
        }
        return Ok(Json(object).into_response());
    }
    let choices = choices.begun().await?;
    let outgoing = Outgoing::new(choices, shape, envelope, delivery, timings);
    let next = async |mut outgoing: Outgoing<S>| outgoing.next().await.map(|event| (event, outgoing));
    Ok(events(stream::unfold(outgoing, next)))
}

/// Whether texts come with their tokens: also where these must be counted as they come.
pub(crate) fn counted(detail: TokenDetail, timings: ShownTimings) -> TokenDetail {
    match timings {
        ShownTimings::Last => detail,
        ShownTimings::Each => TokenDetail::On,
    }
}

/// Server-sent events, with the comments and headers that keep them coming.
pub(crate) fn events(stream: impl Stream<Item = Event> + Send + 'static) -> Response {
    let sse = Sse::new(stream.map(Ok::<_, Infallible>)).keep_alive(KeepAlive::new().interval(PING).text("ping"));
    let mut response = sse.into_response();
    // Reverse proxies would collect tokens into pages.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl Envelope {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": BUILD,
            "choices": choices,
        })
    }
}

/// A stream's events, made as they are asked for: a reader that stays behind is felt by the mesh.
struct Outgoing<S> {
    /// Gone once the stream has ended.
    choices: Option<Choices>,
    shape: S,
    envelope: Envelope,
    delivery: Delivery,
    timings: ShownTimings,
    ready: VecDeque<Event>,
}

impl<S: Shape> Outgoing<S> {
    fn new(choices: Choices, shape: S, envelope: Envelope, delivery: Delivery, timings: ShownTimings) -> Self {
        let count = choices.count();
        let ready = VecDeque::new();
        let mut outgoing = Self { choices: Some(choices), shape, envelope, delivery, timings, ready };
        let openings: Vec<_> = (0..count).filter_map(|index| outgoing.shape.opening(index)).collect();
        for opening in openings {
            outgoing.send(vec![opening], Value::Null, None, None);
        }
        outgoing
    }

    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            self.prepare().await?;
        }
        self.ready.pop_front()
    }

    /// Makes events of what happens next, which may be none; `None` after the end.
    async fn prepare(&mut self) -> Option<()> {
        match self.choices.as_mut()?.next().await {
            Ok(Some((index, ChoiceEvent::Progress(progress)))) => {
                let timings = (self.timings == ShownTimings::Each).then(|| progress.timings());
                let choice = self.shape.silence(index);
                self.send(vec![choice], Value::Null, timings, Some(progress));
            }
            Ok(Some((index, event))) => {
                let choice = match event {
                    ChoiceEvent::Progress(_) => None,
                    ChoiceEvent::Prompt(rows) => Some(self.shape.prompt(index, &rows)),
                    // Tokens that are only counted are no news without text.
                    ChoiceEvent::Delta(delta) if delta.text.is_empty() && self.shape.detail() == TokenDetail::Off => {
                        None
                    }
                    ChoiceEvent::Delta(delta) => Some(self.shape.delta(index, &delta)),
                    ChoiceEvent::Thought(thought) => self.shape.thought(index, &thought),
                    ChoiceEvent::Call(event) => self.shape.call(index, &event),
                    ChoiceEvent::End(end) => Some(self.shape.end(index, end.reason)),
                };
                if let Some(choice) = choice {
                    let timings = self.timings(index);
                    self.send(vec![choice], Value::Null, timings, None);
                }
            }
            Ok(None) => {
                let choices = self.choices.take();
                if self.delivery == Delivery::StreamWithUsage {
                    let usage = choices.as_ref().map(Choices::usage).unwrap_or_default();
                    self.send(vec![], usage, choices.map(|choices| choices.timings()), None);
                }
                self.ready.push_back(Event::default().data("[DONE]"));
            }
            Err(error) => {
                // No finish reason and no [DONE]: a failed answer must not look like a finished one.
                self.choices = None;
                self.ready.push_back(Event::default().data(error.body().to_string()));
            }
        }
        Some(())
    }

    /// What the chunk of a choice says of times, if anything: as llama-server has it, the last one of the stream, and on request
    /// each.
    fn timings(&self, index: usize) -> Option<Timings> {
        let choices = self.choices.as_ref()?;
        if choices.have_ended() && self.delivery == Delivery::Stream {
            return Some(choices.timings());
        }
        (self.timings == ShownTimings::Each).then(|| choices.timings_of(index))
    }

    fn send(&mut self, choices: Vec<Value>, usage: Value, timings: Option<Timings>, progress: Option<Progress>) {
        let mut chunk = self.envelope.object(S::OBJECTS.1, choices);
        if self.delivery == Delivery::StreamWithUsage {
            chunk["usage"] = usage;
        }
        if let Some(timings) = timings {
            chunk["timings"] = timings.json();
        }
        if let Some(progress) = progress {
            chunk["prompt_progress"] = progress.json();
        }
        self.ready.push_back(Event::default().data(chunk.to_string()));
    }
}

/// OpenAI's word for the end of a choice.
pub(crate) fn finish_reason(reason: TextEndReason) -> &'static str {
    match reason {
        TextEndReason::EndToken | TextEndReason::StopString => "stop",
        TextEndReason::Length => "length",
        TextEndReason::Calls => "tool_calls",
    }
}

/// Which build answers, as llama-server names its own: clients of it look for the letter.
pub(crate) const BUILD: &str = concat!("b", env!("CARGO_PKG_VERSION"), "-qmesh");
