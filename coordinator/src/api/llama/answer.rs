//! How llama-server's own endpoints write answers: one object a prompt, or events in which each says how far it is.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    Json,
    response::{IntoResponse, Response, sse::Event},
};
use futures_util::stream;
use serde_json::{Map, Value, json};

use crate::{
    api::{
        answer::events,
        choices::{ChoiceEvent, Choices},
        error::ApiError,
        params::{Delivery, ShownTimings},
        timings::{Progress, Timings},
    },
    text::{Spelled, TextDelta, TextEnd, TextEndReason, TokenText, Visibility},
};

/// What all answers of a request say alike, and what is wanted of them.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) context: usize,
    /// How tokens are drawn, as the answers repeat it.
    pub(super) settings: Value,
    /// What the client wants of the last object; all of it where it does not say.
    pub(super) fields: Vec<String>,
    pub(super) tokens: ShownTokens,
    pub(super) timings: ShownTimings,
    /// Whether each token comes with the likeliest in its place.
    pub(super) probabilities: ShownProbabilities,
}

/// Whether whole answers list their tokens; parts of a stream do so in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ShownTokens {
    No,
    Yes,
}

/// Whether tokens come with probabilities.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ShownProbabilities {
    No,
    Yes,
}

/// One answer as it comes about.
struct Continuation {
    asked: Arc<Asked>,
    index: usize,
    prompt: String,
    text: String,
    tokens: Vec<u32>,
    probabilities: Vec<Value>,
    has_new_line: bool,
}

/// Sends the answers to `prompts`, as each of the choices has one, in the way asked for.
///
/// # Errors
/// Whatever fails before the first byte is out; what fails later is the stream's last event.
pub(super) async fn answer(
    mut choices: Choices,
    prompts: Vec<String>,
    asked: Asked,
    delivery: Delivery,
) -> Result<Response, ApiError> {
    let asked = Arc::new(asked);
    let begun = |(index, prompt)| Continuation::begin(Arc::clone(&asked), index, prompt);
    let mut continuations: Vec<_> = prompts.into_iter().enumerate().map(begun).collect();
    if delivery == Delivery::Whole {
        let mut objects = vec![Value::Null; continuations.len()];
        while let Some((index, event)) = choices.next().await? {
            match event {
                ChoiceEvent::Delta(delta) => continuations[index].add(&delta),
                ChoiceEvent::End(end) => objects[index] = continuations[index].whole(&end),
                ChoiceEvent::Prompt(_) | ChoiceEvent::Progress(_) | ChoiceEvent::Thought(_) | ChoiceEvent::Call(_) => {}
            }
        }
        let object = if objects.len() == 1 { objects.remove(0) } else { objects.into() };
        return Ok(Json(object).into_response());
    }
    let outgoing = Outgoing { choices: Some(choices.begun().await?), continuations, ready: VecDeque::new() };
    let next = async |mut outgoing: Outgoing| outgoing.next().await.map(|event| (event, outgoing));
    Ok(events(stream::unfold(outgoing, next)))
}

impl Continuation {
    fn begin(asked: Arc<Asked>, index: usize, prompt: String) -> Self {
        Self {
            asked,
            index,
            prompt,
            text: String::new(),
            tokens: Vec::new(),
            probabilities: Vec::new(),
            has_new_line: false,
        }
    }

    fn add(&mut self, delta: &TextDelta) {
        self.text.push_str(&delta.text);
        self.has_new_line |= delta.text.contains('\n');
        let shown = || delta.tokens.iter().filter(|token| token.visibility == Visibility::Shown);
        self.tokens.extend(shown().map(|token| token.spelled.id));
        if self.asked.probabilities == ShownProbabilities::Yes {
            self.probabilities.extend(shown().map(probability));
        }
    }

    /// What has come since the last part; none where it has no text yet.
    fn part(&mut self, timings: Timings) -> Option<Value> {
        if self.text.is_empty() {
            return None;
        }
        let (text, tokens) = (std::mem::take(&mut self.text), std::mem::take(&mut self.tokens));
        let mut part = json!({"index": self.index, "content": text, "tokens": tokens, "stop": false});
        if self.asked.timings == ShownTimings::Each {
            part["timings"] = timings.json();
        }
        if self.asked.probabilities == ShownProbabilities::Yes {
            part["completion_probabilities"] = std::mem::take(&mut self.probabilities).into();
        }
        Some(part)
    }

    /// A part that says how far the prompt is.
    fn progress(&self, progress: Progress) -> Value {
        let progress_json = progress.json();
        let mut part = json!({
            "index": self.index, "content": "", "tokens": [], "stop": false, "prompt_progress": progress_json,
        });
        if self.asked.timings == ShownTimings::Each {
            part["timings"] = progress.timings().json();
        }
        part
    }

    /// The last event of a stream.
    fn last(&self, end: &TextEnd) -> Value {
        self.wanted(self.ended(end))
    }

    /// A complete answer.
    fn whole(&self, end: &TextEnd) -> Value {
        let mut object = self.ended(end);
        object["content"] = self.text.as_str().into();
        if self.asked.tokens == ShownTokens::Yes {
            object["tokens"] = self.tokens.clone().into();
        }
        if self.asked.probabilities == ShownProbabilities::Yes {
            object["completion_probabilities"] = self.probabilities.clone().into();
        }
        self.wanted(object)
    }

    fn ended(&self, end: &TextEnd) -> Value {
        let stop_type = match end.reason {
            TextEndReason::EndToken | TextEndReason::Calls => "eos",
            TextEndReason::StopString => "word",
            TextEndReason::Length => "limit",
        };
        let positions = end.prompt_tokens + end.generated_tokens;
        json!({
            "index": self.index,
            "content": "",
            "tokens": [],
            "stop": true,
            "stop_type": stop_type,
            "stopping_word": end.stop.clone().unwrap_or_default(),
            "model": self.asked.model,
            "generation_settings": self.asked.settings,
            "prompt": self.prompt,
            "has_new_line": self.has_new_line,
            "truncated": end.reason == TextEndReason::Length && positions >= self.asked.context,
            "tokens_predicted": end.generated_tokens,
            "tokens_evaluated": end.prompt_tokens,
            "tokens_cached": end.cached_tokens,
            "timings": Timings::of(end).json(),
        })
    }

    /// Those fields that the client wants. A name may be a path: `timings/prompt_n`.
    fn wanted(&self, object: Value) -> Value {
        if self.asked.fields.is_empty() {
            return object;
        }
        let wanted = |field: &String| Some((field.clone(), object.pointer(&format!("/{field}"))?.clone()));
        self.asked.fields.iter().filter_map(wanted).collect::<Map<_, _>>().into()
    }
}

fn probability(token: &TokenText) -> Value {
    let one = |Spelled { id, text, bytes }: &Spelled, logprob: Option<f32>| json!({"id": id, "token": text, "bytes": bytes, "logprob": logprob});
    let mut entry = one(&token.spelled, token.logprob);
    entry["top_logprobs"] = token.top.iter().map(|(spelled, logprob)| one(spelled, Some(*logprob))).collect();
    entry
}

/// A stream's events, made as they are asked for: a reader that stays behind is felt by the mesh.
struct Outgoing {
    /// Gone once the answers have ended.
    choices: Option<Choices>,
    continuations: Vec<Continuation>,
    ready: VecDeque<Value>,
}

impl Outgoing {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            match self.choices.as_mut()?.next().await {
                Ok(Some((index, ChoiceEvent::Delta(delta)))) => {
                    let continuation = &mut self.continuations[index];
                    continuation.add(&delta);
                    let timings = self.choices.as_ref().map(|choices| choices.timings_of(index)).unwrap_or_default();
                    self.ready.extend(continuation.part(timings));
                }
                Ok(Some((index, ChoiceEvent::Progress(progress)))) => {
                    self.ready.push_back(self.continuations[index].progress(progress));
                }
                Ok(Some((index, ChoiceEvent::End(end)))) => {
                    self.ready.push_back(self.continuations[index].last(&end));
                }
                Ok(Some((_, ChoiceEvent::Prompt(_) | ChoiceEvent::Thought(_) | ChoiceEvent::Call(_)))) => {}
                Ok(None) => self.choices = None,
                Err(error) => {
                    self.choices = None;
                    self.ready.push_back(error.body());
                }
            }
        }
        Some(Event::default().data(self.ready.pop_front()?.to_string()))
    }
}
