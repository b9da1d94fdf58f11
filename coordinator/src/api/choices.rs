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
    timings::{Progress, Timings},
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
    /// The token ids that end an answer.
    pub(crate) ends: Arc<[u32]>,
    pub(crate) detail: TokenDetail,
    pub(crate) leading_space: LeadingSpace,
    /// Tells thoughts and calls from the text, if they are wanted apart.
    pub(crate) reading: Option<Reading>,
    pub(crate) grammar: Option<Arc<CompiledGrammar>>,
    pub(crate) prompt_rows: PromptRows,
    pub(crate) progress: ShownProgress,
    pub(crate) client: Client,
}

/// Whether clients hear how far their prompts are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShownProgress {
    No,
    Yes,
}

/// What happens to a choice, in order.
#[derive(Debug)]
pub(crate) enum ChoiceEvent {
    Prompt(Vec<Sampled>),
    /// With `ShownProgress::Yes` only; the first says what was there already.
    Progress(Progress),
    Delta(TextDelta),
    Thought(String),
    Call(CallEvent),
    End(TextEnd),
}

/// All choices of an answer. Dropping them cancels what still runs.
pub(crate) struct Choices {
    running: SelectAll<BoxStream<'static, (usize, TextEvent)>>,
    /// What is told next.
    peeked: VecDeque<(usize, ChoiceEvent)>,
    progress: ShownProgress,
    phase: watch::Receiver<Phase>,
    count: usize,
    prompts: Vec<Vec<u32>>,
    generated_tokens: usize,
    /// Of these, those at which thoughts came out.
    thought_tokens: usize,
    metrics: Arc<Metrics>,
    /// Of each choice.
    times: Vec<ChoiceTimes>,
    /// What each choice took so far.
    timings: Vec<Timings>,
    /// Choices that have not ended.
    unended: usize,
    /// Of which choices it was told how far their prompts are.
    heard: Vec<bool>,
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
        let mut timings = Vec::with_capacity(count);
        for (ids, max_tokens) in job.prompts.iter().zip(rooms) {
            for sequence in 0..job.choices {
                let request = GenerateRequest {
                    ids: ids.clone(),
                    max_tokens,
                    sampling: Sampling { sequence, ..job.sampling.clone() },
                    ends: Arc::clone(&job.ends),
                    grammar: job.grammar.clone(),
                    prompt_rows: job.prompt_rows,
                    client: job.client.id,
                    key: job.client.key.clone(),
                };
                let stream = text.generate(&api.state.mesh, request, options.clone())?;
                running.push(indexed(running.len(), stream));
                timings.push(Timings { computed: ids.len(), ..Timings::default() });
            }
        }
        Ok(Self {
            running,
            peeked: VecDeque::new(),
            progress: job.progress,
            phase: api.phase.clone(),
            count,
            generated_tokens: 0,
            thought_tokens: 0,
            metrics: Arc::clone(&api.metrics),
            times: vec![ChoiceTimes::start(); count],
            timings,
            unended: count,
            heard: vec![false; count],
            cached_tokens: vec![None; job.prompts.len()],
            prompts: job.prompts,
        })
    }

    /// Waits a while for the first event.
    ///
    /// # Errors
    /// The choice failed before anything came of it.
    pub(crate) async fn begun(mut self) -> Result<Self, ApiError> {
        if let Ok(first) = timeout(FIRST_EVENT, self.next()).await {
            // Others may have become known with it.
            first?.into_iter().for_each(|first| self.peeked.push_front(first));
        }
        Ok(self)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Tokens of all prompts.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }

    /// What they continue.
    pub(crate) fn prompts(&self) -> &[Vec<u32>] {
        &self.prompts
    }

    /// The next event of any choice; `None` when all have ended.
    ///
    /// # Errors
    /// One of them failed, or the server is closing: the answer as a whole fails.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, ChoiceEvent)>, ApiError> {
        loop {
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
                TextEvent::Progress { computed_tokens, took, .. } => {
                    self.advance(index, computed_tokens, took);
                    continue;
                }
                TextEvent::Prefilled { took, .. } => {
                    let all = self.prompts[index / self.of_prompt()].len();
                    self.advance(index, all, took);
                    continue;
                }
                TextEvent::Prompt(rows) => ChoiceEvent::Prompt(rows),
                TextEvent::Delta(delta) => ChoiceEvent::Delta(delta),
                TextEvent::Thought(thought) => ChoiceEvent::Thought(thought),
                TextEvent::Call(event) => ChoiceEvent::Call(event),
                TextEvent::Finished(end) => {
                    self.ended(index, &end);
                    ChoiceEvent::End(end)
                }
                TextEvent::Failed(error) => return Err(error.into()),
            };
            return Ok(Some((index, event)));
        }
    }

    /// The prompt of a choice is computed so far: tells those who want to hear it. `measure` has counted it.
    fn advance(&mut self, index: usize, processed: usize, took: Duration) {
        if self.progress == ShownProgress::No {
            return;
        }
        let progress = Progress {
            total: self.prompts[index / self.of_prompt()].len(),
            cached: self.timings[index].cached,
            processed,
            took,
        };
        let begins = !std::mem::replace(&mut self.heard[index], true);
        let begun = Progress { processed: progress.cached, took: Duration::ZERO, ..progress };
        let told = Some(begun).filter(|_| begins).into_iter().chain([progress]);
        self.peeked.extend(told.map(|progress| (index, ChoiceEvent::Progress(progress))));
    }

    /// Whether all of them have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.unended == 0
    }

    /// What they took so far; tokens are counted as they come where texts come with their tokens, else at the end.
    pub(crate) fn timings(&self) -> Timings {
        self.timings.iter().fold(Timings::default(), |all, one| all.beside(*one))
    }

    /// The same of one of them.
    pub(crate) fn timings_of(&self, index: usize) -> Timings {
        self.timings[index]
    }

    /// Choices of each prompt.
    fn of_prompt(&self) -> usize {
        (self.count / self.prompts.len().max(1)).max(1)
    }

    fn ended(&mut self, index: usize, end: &TextEnd) {
        self.unended -= 1;
        self.timings[index] = Timings::of(end);
        self.generated_tokens += end.generated_tokens;
        self.thought_tokens += end.thought_tokens;
        let prompt = index / self.of_prompt();
        if let Some(cached) = self.cached_tokens.get_mut(prompt) {
            *cached = Some(cached.map_or(end.cached_tokens, |least| least.min(end.cached_tokens)));
        }
    }

    /// Counts what came of a choice.
    fn measure(&mut self, index: usize, event: &TextEvent) {
        let prompt_tokens = self.prompts[index / self.of_prompt()].len();
        match event {
            TextEvent::Prompt(_) => {}
            TextEvent::Progress { cached_tokens, computed_tokens, took } => {
                let timings = &mut self.timings[index];
                timings.cached = *cached_tokens;
                timings.computed = computed_tokens.saturating_sub(*cached_tokens);
                timings.prefill = *took;
            }
            TextEvent::Prefilled { cached_tokens, took } => {
                let timings = &mut self.timings[index];
                timings.cached = *cached_tokens;
                timings.computed = prompt_tokens.saturating_sub(*cached_tokens);
                timings.prefill = *took;
                self.times[index].prefilled(*took);
            }
            TextEvent::Delta(delta) => {
                let first = self.metrics.text_came(&mut self.times[index]);
                let timings = &mut self.timings[index];
                timings.generated += delta.tokens.len();
                timings.decode = first.elapsed();
            }
            TextEvent::Thought(_) | TextEvent::Call(_) => {
                let first = self.metrics.text_came(&mut self.times[index]);
                self.timings[index].decode = first.elapsed();
            }
            TextEvent::Finished(end) => self.metrics.ended(self.times[index], end),
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
                ChoiceEvent::Progress(_) => {}
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
        let prompt_tokens = self.prompt_tokens();
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "total_tokens": prompt_tokens + self.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens.iter().flatten().sum::<usize>()},
            "completion_tokens_details": {"reasoning_tokens": self.thought_tokens},
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
