//! The HTTP API: OpenAI's completions and chats, models, health, and the state of the mesh.

mod answer;
mod body;
mod chat;
mod choices;
mod completions;
mod error;
mod guard;
mod mesh;
mod params;
mod patient;
mod server;
#[cfg(test)]
mod tests;
mod unsupported;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
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
use tokio::{sync::watch, task::spawn_blocking};

pub use self::server::serve;

use self::{
    answer::Envelope,
    body::{Budget, parse},
    error::ApiError,
    guard::{Hosts, guard},
    params::{Params, random},
    server::{Phase, Remote},
    unsupported::refuse_unsupported,
};
use crate::{
    generate::{ClientId, MeshHandle},
    mesh::status::MeshState,
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
    /// Asked of every client, except for health and readiness.
    pub api_key: Option<String>,
    /// Host names beside loopback's own that a server bound to loopback answers to.
    pub hosts: Vec<String>,
    /// How long running requests may go on once the server is told to stop.
    pub drain: Duration,
}

impl ApiState {
    /// A mesh and its model, with no other names, no key, and 20 seconds to drain.
    pub fn new(mesh: MeshHandle, text: Arc<TextModel>) -> Self {
        Self { mesh, text, names: Vec::new(), api_key: None, hosts: Vec::new(), drain: Duration::from_secs(20) }
    }
}

/// The state behind the routes.
#[derive(Debug)]
pub(crate) struct Api {
    state: ApiState,
    hosts: Hosts,
    budget: Budget,
    phase: watch::Receiver<Phase>,
    created_s: u64,
}

/// Every route, behind the guard.
pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/", get(mesh::index))
        .route("/health", get(mesh::health))
        .route("/ready", get(mesh::ready))
        .route("/api/status", get(mesh::status))
        .route("/api/events", get(mesh::events))
        .route("/v1/models", get(mesh::models))
        .route("/v1/models/{*id}", get(mesh::model))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .fallback(async || ApiError::NoSuchEndpoint)
        .method_not_allowed_fallback(async || ApiError::WrongMethod)
        .layer(from_fn_with_state(Arc::clone(&api), guard))
        .with_state(api)
}

impl Api {
    pub(crate) fn new(state: ApiState, hosts: Hosts, phase: watch::Receiver<Phase>) -> Self {
        Self { state, hosts, budget: Budget::new(), phase, created_s: now_s() }
    }

    /// Reads a completion request: the shared parameters and its own, for the model that is served.
    async fn read<T: DeserializeOwned>(&self, request: Request) -> Result<(Params, T), ApiError> {
        let body = self.budget.read(request).await?;
        let (params, own): (Params, T) = (parse(&body.bytes)?, parse(&body.bytes)?);
        refuse_unsupported(&body.bytes)?;
        self.check_model(params.model.as_deref())?;
        Ok((params, own))
    }

    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.state.text.name && !self.state.names.iter().any(|name| name == asked) => {
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

    fn remote(request: &Request) -> Option<Remote> {
        request.extensions().get().copied()
    }

    /// Clients are told apart by address and, behind one address, by the `user` that they name.
    fn client(&self, remote: Option<Remote>, user: Option<&str>) -> ClientId {
        let mut hasher = DefaultHasher::new();
        (remote.map(|remote| remote.0.ip()), user).hash(&mut hasher);
        ClientId(hasher.finish())
    }

    fn envelope(&self, kind: &str) -> Envelope {
        let id = format!("{kind}-{:016x}", random());
        Envelope { id, created_s: now_s(), model: self.state.text.name.clone() }
    }
}

/// Runs what takes long, templates and tokenizers, beside the connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    spawn_blocking(work).await.map_err(|error| ApiError::Internal { text: error.to_string() })
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs())
}
