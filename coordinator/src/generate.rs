//! What callers ask of the mesh and what comes back: token ids in, token ids out. `text` turns them into text and back.

use std::{sync::Arc, time::Duration};

use qmesh_net::{Sampled, Sampling};
use tokio::sync::mpsc;

use crate::grammar::{CompiledGrammar, GrammarError};

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The prompt; at least one id.
    pub ids: Vec<u32>,
    /// The most tokens to generate; 0 only scores the prompt.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Ids that end the generation; they are reported as the last token.
    pub ends: Arc<[u32]>,
    /// What the generated text must look like, if anything. It ends where the grammar lets it, with one of the ends that the grammar
    /// was compiled for, which are among `ends`; or before that, for want of room or with another one of `ends`.
    pub grammar: Option<Arc<CompiledGrammar>>,
    /// What is wanted of the prompt's own rows.
    pub prompt_rows: PromptRows,
    /// On whose behalf it is computed: the scheduler is fair between clients.
    pub client: ClientId,
    /// The name of the key by which it was asked for, where keys have names: for people.
    pub key: Option<Arc<str>>,
}

/// What is wanted of the prompt's own rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PromptRows {
    /// The last one is sampled, which starts the generation.
    Last,
    /// All of them are sampled and scored (`GenerateEvent::Prompt`).
    All,
    /// They become one vector (`GenerateEvent::Pooled`), and nothing is generated, whatever `max_tokens` says.
    Pooled(Pooling),
}

/// Which rows a text's vector is made of, after the final norm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first one.
    First,
    /// The last one.
    Last,
}

/// Who asks, for fairness between clients.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClientId(pub u64);

/// What happens to a generation, in order.
#[derive(Clone, Debug)]
pub enum GenerateEvent {
    /// The rows of the prompt, one per id and in order, with `PromptRows::All` only.
    Prompt(Vec<Sampled>),
    /// What a prompt has become with `PromptRows::Pooled`: a vector of length 1, as wide as the model's rows.
    Pooled(Vec<f32>),
    /// More of the prompt is computed, but not all of it.
    Progress {
        /// Its tokens that an earlier request had left behind.
        cached_tokens: usize,
        /// Its tokens so far, with those.
        computed_tokens: usize,
    },
    /// The prompt is computed.
    Prefilled {
        /// Its tokens that an earlier request had left behind.
        cached_tokens: usize,
    },
    /// The next token.
    Token(Sampled),
    /// The last event of a generation that came to its end.
    Finished(Finish),
    /// The last event of one that did not.
    Failed(GenerateError),
}

impl GenerateEvent {
    /// Whether nothing comes after it.
    pub(crate) fn is_last(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::Failed(_))
    }
}

/// How a generation ended, and what it took.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end-of-generation token included.
    pub generated_tokens: usize,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FinishReason {
    /// One of `ends` came.
    End,
    /// `max_tokens`, or the context was full.
    Length,
}

/// Why a request was not taken, or did not come to its end.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// The prompt (and one token) does not fit.
    #[error(
        "This model's maximum context length is {context} tokens, the prompt has {prompt_tokens}, which exceeds the \
         available context size: shorten it, or serve with a larger --ctx-size"
    )]
    ContextExceeded {
        /// Of the prompt.
        prompt_tokens: usize,
        /// That a session may hold.
        context: usize,
    },
    /// An id is not in the vocabulary, or the prompt is empty.
    #[error("bad prompt: {text}")]
    BadPrompt {
        /// What is wrong with it.
        text: String,
    },
    /// The queue is full.
    #[error("{waiting} requests are waiting already: try again later")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
    },
    /// No pipeline stands: workers are missing, or still loading.
    #[error("not ready: {text}")]
    NotReady {
        /// What is missing.
        text: String,
    },
    /// A worker was lost and the request could not be resumed in time.
    #[error("{text}")]
    WorkerLost {
        /// Which worker, with which layers.
        text: String,
    },
    /// A stage reported a fault.
    #[error("{text}")]
    Fault {
        /// Which stage, and what it said.
        text: String,
    },
    /// Whoever runs the mesh has ended it.
    #[error("the request was cancelled at the server")]
    Cancelled,
    /// The text could not go on along its grammar.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// The coordinator is going down.
    #[error("the coordinator is shutting down")]
    ShuttingDown,
}

/// A running generation; dropping it cancels it within a step.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<GenerateEvent>,
}

impl Generation {
    pub(crate) fn new(events: mpsc::Receiver<GenerateEvent>) -> Self {
        Self { events }
    }

    /// The next event; `None` after `Finished` or `Failed`.
    pub async fn next(&mut self) -> Option<GenerateEvent> {
        self.events.recv().await
    }
}
