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
        params::Delivery,
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
                ChoiceEvent::Prompt(_) | ChoiceEvent::Thought(_) | ChoiceEvent::Call(_) => {}
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
    fn part(&mut self) -> Option<Value> {
        if self.text.is_empty() {
            return None;
        }
        let (text, tokens) = (std::mem::take(&mut self.text), std::mem::take(&mut self.tokens));
        let mut part = json!({"index": self.index, "content": text, "tokens": tokens, "stop": false});
        if self.asked.probabilities == ShownProbabilities::Yes {
            part["completion_probabilities"] = std::mem::take(&mut self.probabilities).into();
        }
        Some(part)
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
            "timings": timings(end),
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

/// What the prompt took, but for what was there already, and what the text took.
fn timings(end: &TextEnd) -> Value {
    let (prompt_ms, predicted_ms) = (end.prefill.as_secs_f64() * 1e3, end.decode.as_secs_f64() * 1e3);
    let computed = end.prompt_tokens.saturating_sub(end.cached_tokens);
    json!({
        "cache_n": end.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": per_token(computed, prompt_ms),
        "prompt_per_second": per_second(computed, prompt_ms),
        "predicted_n": end.generated_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": per_token(end.generated_tokens, predicted_ms),
        "predicted_per_second": per_second(end.generated_tokens, predicted_ms),
    })
}

fn per_token(tokens: usize, ms: f64) -> f64 {
    if tokens > 0 { ms / tokens as f64 } else { 0.0 }
}

fn per_second(tokens: usize, ms: f64) -> f64 {
    if ms > 0.0 { tokens as f64 * 1e3 / ms } else { 0.0 }
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
                    self.ready.extend(continuation.part());
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
