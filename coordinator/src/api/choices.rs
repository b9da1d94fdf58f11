//! The choices of one answer, running side by side, and what came of them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::{
    StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use qmesh_models::tokenizer::LeadingSpace;
use qmesh_net::{Sampled, Sampling};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::{
    Api,
    caller::Client,
    error::{ApiError, PromptTokens},
    metrics::{ChoiceTimes, Metrics},
    server::Phase,
};
use crate::{
    generate::{GenerateError, GenerateRequest, PromptRows},
    grammar::CompiledGrammar,
    text::{
        CallEvent, Reading, TextDelta, TextEnd, TextEndReason, TextEvent, TextOptions, TextStream, TokenDetail,
        TokenText,
    },
};

/// Most choices of one request, over all its prompts.
const MOST: usize = 128;
/// How long a stream's headers wait for its first event: a request that is refused at once still has a status of its own, and
/// clients that give up on silent servers wait no longer for one with a long prompt.
const FIRST_EVENT: Duration = Duration::from_millis(100);

/// What to generate.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompts: Vec<Vec<u32>>,
    /// The parameter that the prompts came in.
    pub(crate) param: &'static str,
    /// Choices per prompt.
    pub(crate) choices: u64,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) stops: Vec<String>,
    pub(crate) detail: TokenDetail,
    pub(crate) leading_space: LeadingSpace,
    /// Tells thoughts and calls from the text, if they are wanted apart.
    pub(crate) reading: Option<Reading>,
    pub(crate) grammar: Option<Arc<CompiledGrammar>>,
    pub(crate) prompt_rows: PromptRows,
    pub(crate) client: Client,
}

/// What happens to a choice, in order.
#[derive(Debug)]
pub(crate) enum ChoiceEvent {
    Prompt(Vec<Sampled>),
    Delta(TextDelta),
    Thought(String),
    Call(CallEvent),
    End(TextEnd),
}

/// All choices of an answer. Dropping them cancels what still runs.
pub(crate) struct Choices {
    running: SelectAll<BoxStream<'static, (usize, TextEvent)>>,
    peeked: VecDeque<(usize, ChoiceEvent)>,
    phase: watch::Receiver<Phase>,
    count: usize,
    prompt_tokens: usize,
    generated_tokens: usize,
    metrics: Arc<Metrics>,
    /// Of each choice.
    times: Vec<ChoiceTimes>,
    /// Of each prompt, what was there before this request: the least that one of its choices found.
    cached_tokens: Vec<Option<usize>>,
}

/// One choice, complete.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) prompt: Vec<Sampled>,
    pub(crate) text: String,
    pub(crate) thoughts: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) tokens: Vec<TokenText>,
    pub(crate) reason: TextEndReason,
}

/// One call of a tool, complete.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl Choices {
    /// Hands the choices to the mesh, prompt by prompt.
    ///
    /// # Errors
    /// A prompt that does not fit, before anything is submitted; a mesh that does not take them.
    pub(crate) fn start(api: &Api, job: Job) -> Result<Self, ApiError> {
        let text = &api.state.text;
        let count = job.prompts.len() * usize::try_from(job.choices).unwrap_or(MOST);
        if count > MOST {
            return Err(ApiError::invalid(job.param, format!("{count} choices in one request, want at most {MOST}")));
        }
        let rooms = job.prompts.iter().map(|ids| room(&job, ids.len(), text.context)).collect::<Result<Vec<_>, _>>()?;
        let options = TextOptions {
            stops: job.stops,
            tokens: job.detail,
            leading_space: job.leading_space,
            reading: job.reading,
        };
        let mut running = SelectAll::new();
        for (ids, max_tokens) in job.prompts.iter().zip(rooms) {
            for sequence in 0..job.choices {
                let request = GenerateRequest {
                    ids: ids.clone(),
                    max_tokens,
                    sampling: Sampling { sequence, ..job.sampling.clone() },
                    ends: Arc::clone(&text.ends),
                    grammar: job.grammar.clone(),
                    prompt_rows: job.prompt_rows,
                    client: job.client.id,
                    key: job.client.key.clone(),
                };
                let stream = text.generate(&api.state.mesh, request, options.clone())?;
                running.push(indexed(running.len(), stream));
            }
        }
        Ok(Self {
            running,
            peeked: VecDeque::new(),
            phase: api.phase.clone(),
            count,
            prompt_tokens: job.prompts.iter().map(Vec::len).sum(),
            generated_tokens: 0,
            metrics: Arc::clone(&api.metrics),
            times: vec![ChoiceTimes::start(); count],
            cached_tokens: vec![None; job.prompts.len()],
        })
    }

    /// Waits a while for the first event.
    ///
    /// # Errors
    /// The choice failed before anything came of it.
    pub(crate) async fn begun(mut self) -> Result<Self, ApiError> {
        if let Ok(first) = timeout(FIRST_EVENT, self.next()).await {
            self.peeked.extend(first?);
        }
        Ok(self)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The next event of any choice; `None` when all have ended.
    ///
    /// # Errors
    /// One of them failed, or the server is closing: the answer as a whole fails.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, ChoiceEvent)>, ApiError> {
        if let Some(event) = self.peeked.pop_front() {
            return Ok(Some(event));
        }
        let next = tokio::select! {
            next = self.running.next() => next,
            () = Phase::Closing.reached(&mut self.phase) => return Err(GenerateError::ShuttingDown.into()),
        };
        let Some((index, event)) = next else { return Ok(None) };
        self.measure(index, &event);
        let event = match event {
            TextEvent::Prompt(rows) => ChoiceEvent::Prompt(rows),
            TextEvent::Delta(delta) => ChoiceEvent::Delta(delta),
            TextEvent::Thought(thought) => ChoiceEvent::Thought(thought),
            TextEvent::Call(event) => ChoiceEvent::Call(event),
            TextEvent::Finished(end) => {
                self.generated_tokens += end.generated_tokens;
                let of_prompt = self.count / self.cached_tokens.len().max(1);
                if let Some(cached) = self.cached_tokens.get_mut(index / of_prompt.max(1)) {
                    *cached = Some(cached.map_or(end.cached_tokens, |least| least.min(end.cached_tokens)));
                }
                ChoiceEvent::End(end)
            }
            TextEvent::Failed(error) => return Err(error.into()),
        };
        Ok(Some((index, event)))
    }

    /// Counts what came of a choice.
    fn measure(&mut self, index: usize, event: &TextEvent) {
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Delta(_) | TextEvent::Thought(_) | TextEvent::Call(_) => self.times[index].text_came(),
            TextEvent::Finished(end) => self.metrics.ended(self.times[index], end.generated_tokens, end.reason),
            TextEvent::Failed(_) => self.metrics.failed(),
        }
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// As `next`.
    pub(crate) async fn wholes(&mut self) -> Result<Vec<Whole>, ApiError> {
        let mut wholes: Vec<_> = std::iter::repeat_with(Whole::begun).take(self.count).collect();
        while let Some((index, event)) = self.next().await? {
            let whole = &mut wholes[index];
            match event {
                ChoiceEvent::Prompt(rows) => whole.prompt = rows,
                ChoiceEvent::Delta(delta) => {
                    whole.text.push_str(&delta.text);
                    whole.tokens.extend(delta.tokens);
                }
                ChoiceEvent::Thought(thought) => whole.thoughts.push_str(&thought),
                ChoiceEvent::Call(event) => whole.call(event),
                ChoiceEvent::End(end) => whole.reason = end.reason,
            }
        }
        Ok(wholes)
    }

    /// What it took, complete once all have ended.
    pub(crate) fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "total_tokens": self.prompt_tokens + self.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens.iter().flatten().sum::<usize>()},
        })
    }
}

impl Whole {
    fn begun() -> Self {
        Self {
            prompt: Vec::new(),
            text: String::new(),
            thoughts: String::new(),
            calls: Vec::new(),
            tokens: Vec::new(),
            reason: TextEndReason::Length,
        }
    }

    fn call(&mut self, event: CallEvent) {
        match event {
            CallEvent::Begun { id, name, .. } => self.calls.push(Call { id, name, arguments: String::new() }),
            CallEvent::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
            CallEvent::Ended { .. } => {}
        }
    }
}

/// The tokens that may follow a prompt.
fn room(job: &Job, prompt_tokens: usize, context: usize) -> Result<usize, ApiError> {
    let room = context.saturating_sub(prompt_tokens);
    let fits = if job.max_tokens == Some(0) { prompt_tokens <= context } else { room > 0 };
    match fits {
        true => Ok(job.max_tokens.unwrap_or(usize::MAX).min(room)),
        false => {
            let prompt_tokens = PromptTokens::Exactly(prompt_tokens);
            Err(ApiError::ContextExceeded { param: job.param, prompt_tokens, context })
        }
    }
}

fn indexed(index: usize, text: TextStream) -> BoxStream<'static, (usize, TextEvent)> {
    let next = move |mut text: TextStream| async move { text.next().await.map(|event| ((index, event), text)) };
    stream::unfold(text, next).boxed()
}
