//! The HTTP API: OpenAI's completions and chats, vectors of texts, models, health, and the state of the mesh.

mod answer;
mod anthropic;
mod bias;
mod body;
mod caller;
mod chat;
mod choices;
mod completions;
mod cors;
mod dry;
mod effort;
mod embeddings;
mod error;
mod grammar;
mod guard;
mod json;
mod key;
mod limits;
mod listen;
mod llama;
mod mesh;
mod metrics;
mod ollama;
mod openapi;
mod owner;
mod page;
mod params;
mod parting;
mod patient;
mod places;
mod prompts;
mod ranges;
mod relay;
mod responses;
mod server;
mod slots;
#[cfg(test)]
mod tests;
mod timings;
mod tokens;
mod unsupported;
mod vectors;
mod vendor;
mod weight;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::Request,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use self::{
    key::{ApiKey, ApiKeyError, KeyListError, NamedKeys},
    listen::{ListenError, Listeners},
    owner::OWNER_KEY,
    server::{ServeError, serve},
};

use self::{
    answer::Envelope,
    body::{Budget, Received, Share},
    effort::Effort,
    error::ApiError,
    guard::{Hosts, guard},
    metrics::Metrics,
    params::{Params, random},
    parting::Receipt,
    places::Limits,
    server::Phase,
    unsupported::{Kind, refuse_unsupported},
    weight::Weight,
};
use crate::{
    mesh::{MeshHandle, status::MeshState},
    text::TextModel,
};

/// What the API serves, and to whom.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Where tokens come from.
    pub mesh: MeshHandle,
    /// The model's text side.
    pub text: Arc<TextModel>,
    /// Names beside the model's own by which clients may ask for it.
    pub names: Vec<String>,
    /// Whether it answers to whatever name a client has for the model.
    pub any_name: bool,
    /// Asked of every client, except for health and readiness.
    pub api_key: Option<ApiKey>,
    /// Any of them will do as well, and tells who asks.
    pub named_keys: NamedKeys,
    /// Shown by whoever runs the coordinator, who alone decides about workers; without one nobody does so by the API.
    pub owner_key: Option<ApiKey>,
    /// Pages that may ask from elsewhere, as browsers name their origin; `*` stands for all.
    pub origins: Vec<String>,
    /// Host names beside loopback's own that a server bound to loopback answers to.
    pub hosts: Vec<String>,
    /// Addresses of proxies that say for whom they ask (`X-Forwarded-For`) and hold connections of many.
    pub trusted_proxies: Vec<IpAddr>,
    /// How many connections there may be.
    limits: Limits,
    /// How long running requests may go on once the server is told to stop.
    pub drain: Duration,
}

impl ApiState {
    /// A mesh and its model, with no other names, no keys, and 20 seconds to drain.
    pub fn new(mesh: MeshHandle, text: Arc<TextModel>) -> Self {
        Self {
            mesh,
            text,
            names: Vec::new(),
            any_name: false,
            api_key: None,
            named_keys: NamedKeys::default(),
            owner_key: None,
            hosts: Vec::new(),
            origins: Vec::new(),
            trusted_proxies: Vec::new(),
            limits: Limits::default(),
            drain: Duration::from_secs(20),
        }
    }

    /// Whether clients must show a key.
    fn wants_key(&self) -> bool {
        self.api_key.is_some() || !self.named_keys.are_none()
    }

    fn answers_to(&self, name: &str) -> bool {
        let is = |name: &str| self.text.name == name || self.names.iter().any(|known| known == name);
        // Ollama's clients add a tag.
        self.any_name || is(name) || name.strip_suffix(":latest").is_some_and(is)
    }
}

/// The state behind the routes.
#[derive(Debug)]
pub(crate) struct Api {
    state: ApiState,
    hosts: Hosts,
    budget: Budget,
    metrics: Arc<Metrics>,
    phase: watch::Receiver<Phase>,
    created_s: u64,
}

/// Every route, behind the guard.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/", get(page::root))
        .route("/health", get(mesh::health))
        .route("/ready", get(mesh::ready))
        .merge(probes())
        .route("/api/status", get(mesh::status))
        .route("/api/events", get(mesh::events))
        .route("/api/requests/{number}/cancel", post(mesh::cancel))
        .route("/api/workers", get(owner::workers))
        .route("/api/workers/{who}/admit", post(owner::admit))
        .route("/api/workers/{who}/refuse", post(owner::refuse))
        .route("/api/workers/{who}/revoke", post(owner::revoke))
        .route("/api/workers/{who}/forget", post(owner::forget))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::openapi))
        .route("/props", get(tokens::props))
        .route("/slots", get(slots::slots))
        .route("/infill", post(llama::infill::infill))
        .route("/completion", post(llama::completion::completion))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(mesh::models))
        .route("/v1/models/{*id}", get(mesh::model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .merge(dialects())
        .fallback(async || ApiError::NoSuchEndpoint)
        .method_not_allowed_fallback(async || ApiError::WrongMethod)
        .layer(from_fn_with_state(Arc::clone(&api), guard))
        .with_state(api)
}

/// What other servers call the same, and orchestrators look for.
fn probes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v1/health", get(mesh::health))
        .route("/healthz", get(mesh::health))
        .route("/ping", get(mesh::health))
        .route("/readyz", get(mesh::ready))
        .route("/version", get(mesh::version))
}

/// The ways of other APIs to the same model, and OpenAI's without the version.
fn dialects() -> Router<Arc<Api>> {
    Router::new()
        .route("/models", get(mesh::models))
        .route("/models/{*id}", get(mesh::model))
        .route("/chat/completions", post(chat::chat))
        .route("/chat/completions/input_tokens", post(chat::input_tokens))
        .route("/v1/chat/completions/input_tokens", post(chat::input_tokens))
        .route("/completions", post(completions::completions))
        .route("/embeddings", post(embeddings::embeddings))
        .route("/embedding", post(embeddings::embedding))
        .route("/apply-template", post(chat::apply_template))
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed::embed))
        .route("/api/embeddings", post(ollama::embed::embeddings))
        .route("/api/tags", get(ollama::models::tags))
        .route("/api/ps", get(ollama::models::running))
        .route("/api/show", post(ollama::models::show))
        .route("/api/version", get(ollama::models::version))
        .route("/v1/responses", post(responses::responses))
        .route("/responses", post(responses::responses))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/responses/input_tokens", post(responses::input_tokens))
}

impl Api {
    pub(crate) fn new(state: ApiState, hosts: Hosts, phase: watch::Receiver<Phase>) -> Self {
        let metrics = Arc::new(Metrics::new(state.mesh.clone(), &state.text.name));
        Self { state, hosts, budget: Budget::new(), metrics, phase, created_s: now_s() }
    }

    /// Reads a completion request for the model that is served: the shared parameters and its own, and the share of
    /// memory that making prompts of it takes.
    async fn read<T: Kind>(&self, request: Request) -> Result<(Params, T, Share), ApiError> {
        let (body, share) = self.body(request).await?;
        let effort = body.effort();
        let parsing = move || {
            let body = body.parsed()?;
            let (params, own): (Params, T) = (body.read()?, body.read()?);
            refuse_unsupported::<T>(&body)?;
            Ok::<_, ApiError>((params, own, body))
        };
        let (mut params, own, body) = effort.run(parsing).await??;
        let text = Arc::clone(&self.state.text);
        let effort = effort.of_fields(&body);
        let rest = move || params.read_rest(&body, &text).map(|()| (params, share));
        let (params, share) = effort.run(rest).await??;
        self.check_model(params.model.as_deref())?;
        Ok((params, own, share))
    }

    /// Reads a request that has none of the shared parameters.
    async fn read_own<T: Kind>(&self, request: Request) -> Result<(T, Share), ApiError> {
        let (body, share) = self.body(request).await?;
        let effort = body.effort();
        let parsing = move || {
            let body = body.parsed()?;
            let own = body.read()?;
            refuse_unsupported::<T>(&body)?;
            Ok::<_, ApiError>((own, share))
        };
        effort.run(parsing).await?
    }

    /// Reads a request that generates nothing.
    async fn read_plain<T: DeserializeOwned + Send + 'static>(&self, request: Request) -> Result<(T, Share), ApiError> {
        let (body, share) = self.body(request).await?;
        Ok((body.effort().run(move || body.parsed()?.read()).await??, share))
    }

    /// Reads a body, and takes the share of memory that making prompts of it takes.
    async fn body(&self, request: Request) -> Result<(Received, Share), ApiError> {
        let receipt = request.extensions().get::<Receipt>().cloned();
        let body = self.budget.read(request).await?;
        if let Some(receipt) = receipt {
            receipt.give();
        }
        let effort = body.effort();
        let (body, weight) = effort.run(move || Weight::of(&body.bytes).map(|weight| (body, weight))).await??;
        let share = self.budget.share(weight.bytes(self.state.text.longest_prompt_bytes())?, effort).await?;
        Ok((body, share))
    }

    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if !self.state.answers_to(asked) => {
                Err(ApiError::UnknownModel { name: asked.chars().take(100).collect() })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn check_ready(&self) -> Result<(), ApiError> {
        let status = self.state.mesh.status();
        match status.state {
            MeshState::Ready => Ok(()),
            state @ (MeshState::Waiting | MeshState::Loading | MeshState::Failed | MeshState::Stopping) => {
                Err(ApiError::NotReady { state, text: status.text.clone() })
            }
        }
    }

    fn envelope(&self, kind: &str) -> Envelope {
        let id = format!("{kind}-{:016x}", random());
        Envelope { id, created_s: now_s(), model: self.state.text.name.clone(), shown_prompt: None }
    }
}

/// Runs what takes long, templates and grammars, beside the connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    Effort::Large.run(work).await
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
