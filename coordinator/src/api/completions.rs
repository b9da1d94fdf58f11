//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use qmesh_models::tokenizer::{ControlTokens, LeadingSpace};
use qmesh_net::Sampled;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Api,
    answer::{Shape, answer, counted, finish_reason},
    caller::Caller,
    choices::{Choices, Job, Whole},
    error::ApiError,
    params::TOP_LOGPROBS,
    prompts::{Prompt, SentPrompts, prompts},
    ranges::integer,
    unsupported::Kind,
};
use crate::{
    generate::PromptRows,
    text::{Gap, PromptError, TextDelta, TextEndReason, TextModel, TokenDetail, TokenText},
};

/// Most prompts of one request.
const PROMPTS: usize = 64;
/// Tokens generated for a client that does not say, as OpenAI has it.
const MAX_TOKENS: usize = 16;

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Option<SentPrompts>,
    /// What comes after the text that is generated.
    suffix: Option<String>,
    echo: Option<bool>,
    logprobs: Option<i64>,
}

impl Kind for CompletionRequest {
    const HONOURED: &'static [&'static str] = &["echo", "return_progress", "suffix", "timings_per_token"];
}

/// A prompt as ids, and as the text that `echo` repeats.
#[derive(Debug)]
struct Encoded {
    ids: Vec<u32>,
    text: String,
}

/// Whether choices begin with their prompt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Echo {
    Off,
    On,
}

/// Continues prompts.
pub(crate) async fn completions(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, completion, share) = api.read::<CompletionRequest>(request).await?;
    let delivery = params.delivery()?;
    let top = integer("logprobs", completion.logprobs, 0..=TOP_LOGPROBS)?.and_then(|top| u16::try_from(top).ok());
    let detail = if top.is_some() { TokenDetail::On } else { TokenDetail::Off };
    let timings = params.timings();
    let echo = if completion.echo.unwrap_or(false) { Echo::On } else { Echo::Off };
    // To score its prompt is the one reason for a request to generate nothing.
    let max_tokens = params.max_tokens(if echo == Echo::On { 0 } else { 1 })?.unwrap_or(MAX_TOKENS);
    let mut job = Job {
        prompts: Vec::new(),
        param: "prompt",
        choices: params.choices()?,
        max_tokens: Some(max_tokens),
        sampling: params.sampling(&api.state.text, top.unwrap_or(0))?,
        stops: params.stops()?,
        ends: params.ends(&api.state.text)?,
        detail: counted(detail, timings),
        leading_space: LeadingSpace::Keep,
        reading: None,
        grammar: None,
        prompt_rows: if (echo, detail) == (Echo::On, TokenDetail::On) { PromptRows::All } else { PromptRows::Last },
        progress: params.progress(),
        client: caller.client(params.user.as_deref()),
    };
    let suffix = completion.suffix.filter(|suffix| !suffix.is_empty());
    if suffix.is_some() && echo == Echo::On {
        return Err(ApiError::invalid("suffix", "'suffix' and 'echo' do not go together"));
    }
    let prompts = prompts("prompt", completion.prompt, PROMPTS)?;
    api.check_ready()?;
    job.grammar = api.compile(params.grammar).await?;
    let text = Arc::clone(&api.state.text);
    let effort = share.effort;
    let encode = move || {
        let _held = share;
        prompts
            .into_iter()
            .map(|prompt| Encoded::of(prompt, suffix.as_deref(), &text, echo))
            .collect::<Result<Vec<_>, _>>()
    };
    let prompts = effort.run(encode).await??;
    job.prompts = prompts.iter().map(|prompt| prompt.ids.clone()).collect();
    let text = Arc::clone(&api.state.text);
    let choices = Choices::start(&api, job)?;
    let shape = CompletionShape { text, per_prompt: choices.count() / prompts.len(), prompts, echo, detail };
    answer(choices, shape, api.envelope("cmpl"), delivery, timings).await
}

impl Encoded {
    fn of(prompt: Prompt, suffix: Option<&str>, text: &TextModel, echo: Echo) -> Result<Self, ApiError> {
        if let Some(suffix) = suffix {
            let Some(before) = prompt.into_text() else {
                return Err(ApiError::invalid("suffix", "'suffix' goes with a prompt that is text"));
            };
            let gap = Gap { before, after: suffix.to_owned(), ..Gap::default() };
            let param =
                |error: &PromptError| if matches!(error, PromptError::NoInfill { .. }) { "suffix" } else { "prompt" };
            let ids = text.infill_prompt(&gap).map_err(|error| ApiError::text(param(&error), &error))?;
            return Ok(Self { ids, text: String::new() });
        }
        let ids = prompt.ids("prompt", text)?;
        let text = match prompt.into_text() {
            Some(prompt) => prompt,
            // Too many of them are refused later; their text could be long.
            None if echo == Echo::On && ids.len() <= text.context => text.tokenizer.decode(&ids, ControlTokens::Hide),
            None => String::new(),
        };
        Ok(Self { ids, text })
    }
}

struct CompletionShape {
    text: Arc<TextModel>,
    prompts: Vec<Encoded>,
    /// Choices per prompt.
    per_prompt: usize,
    echo: Echo,
    detail: TokenDetail,
}

impl CompletionShape {
    fn choice(index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
    }

    fn prompt_of(&self, index: usize) -> &Encoded {
        &self.prompts[index / self.per_prompt]
    }

    /// Characters that stand before the generated text.
    fn echoed_chars(&self, index: usize) -> usize {
        if self.echo == Echo::On { self.prompt_of(index).text.chars().count() } else { 0 }
    }

    fn logprobs(&self, prompt: &[TokenText], tokens: &[TokenText], index: usize) -> Value {
        if self.detail == TokenDetail::Off {
            return Value::Null;
        }
        let before = self.echoed_chars(index);
        let offsets = prompt.iter().map(|token| token.offset).chain(tokens.iter().map(|token| token.offset + before));
        let all = || prompt.iter().chain(tokens);
        json!({
            "tokens": all().map(|token| &token.spelled.text).collect::<Vec<_>>(),
            "token_logprobs": all().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": all().map(top_logprobs).collect::<Vec<_>>(),
            "text_offset": offsets.collect::<Vec<_>>(),
        })
    }
}

impl Shape for CompletionShape {
    const OBJECTS: (&'static str, &'static str) = ("text_completion", "text_completion");

    fn detail(&self) -> TokenDetail {
        self.detail
    }

    fn opening(&self, index: usize) -> Option<Value> {
        let plain = (self.echo, self.detail) == (Echo::On, TokenDetail::Off);
        plain.then(|| Self::choice(index, &self.prompt_of(index).text, Value::Null, None))
    }

    fn prompt(&self, index: usize, rows: &[Sampled]) -> Value {
        let Encoded { ids, text } = self.prompt_of(index);
        let tokens = self.text.prompt_tokens(ids, rows);
        Self::choice(index, text, self.logprobs(&tokens, &[], index), None)
    }

    fn silence(&self, index: usize) -> Value {
        Self::choice(index, "", Value::Null, None)
    }

    fn delta(&self, index: usize, delta: &TextDelta) -> Value {
        Self::choice(index, &delta.text, self.logprobs(&[], &delta.tokens, index), None)
    }

    fn end(&self, index: usize, reason: TextEndReason) -> Value {
        Self::choice(index, "", Value::Null, Some(finish_reason(reason)))
    }

    fn whole(&self, index: usize, whole: &Whole) -> Value {
        let prompt = self.prompt_of(index);
        let tokens = if whole.prompt.is_empty() { vec![] } else { self.text.prompt_tokens(&prompt.ids, &whole.prompt) };
        let before = if self.echo == Echo::On { prompt.text.as_str() } else { "" };
        let logprobs = self.logprobs(&tokens, &whole.tokens, index);
        Self::choice(index, &format!("{before}{}", whole.text), logprobs, Some(finish_reason(whole.reason)))
    }
}

/// The alternatives by their text, the token itself among them; null where nothing predicts it.
fn top_logprobs(token: &TokenText) -> Option<Map<String, Value>> {
    let logprob = token.logprob?;
    let mut top: Map<_, _> =
        token.top.iter().map(|(spelled, logprob)| (spelled.text.clone(), json!(logprob))).collect();
    top.entry(token.spelled.text.clone()).or_insert(json!(logprob));
    Some(top)
}
