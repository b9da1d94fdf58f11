//! What the API says of the mesh and its model.

use std::{fmt::Write, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
    response::{Response, sse::Event},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Api, answer,
    error::ApiError,
    openapi::{OPERATIONS, Operation},
    server::Phase,
};
use crate::mesh::{
    events::{EventReader, Heard, ToldEvent},
    status::MeshStatus,
};

/// Least time between two statuses of a stream.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// Names the endpoints.
pub(crate) fn index(api: &Api) -> String {
    let mut text = format!("qmesh {} serves {}\n\n", env!("CARGO_PKG_VERSION"), api.state.text.name);
    for Operation { method, path, what, .. } in &OPERATIONS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<5}{path:<32}{what}", method.to_uppercase());
    }
    text
}

/// The process answers: that is all that is asked.
pub(crate) async fn health(State(api): State<Arc<Api>>) -> Json<Value> {
    let status = api.state.mesh.status();
    Json(json!({"status": "ok", "state": status.state, "text": status.text}))
}

/// Whether tokens can flow.
pub(crate) async fn ready(State(api): State<Arc<Api>>) -> Result<Json<Value>, ApiError> {
    api.check_ready()?;
    Ok(Json(json!({"status": "ready", "model": api.state.text.name})))
}

pub(crate) async fn status(State(api): State<Arc<Api>>) -> Json<MeshStatus> {
    Json(MeshStatus::clone(&api.state.mesh.status()))
}

/// Ends a request that runs or waits.
pub(crate) async fn cancel(
    State(api): State<Arc<Api>>,
    number: Result<Path<u64>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Ok(Path(request)) = number else { return Err(ApiError::NoSuchEndpoint) };
    if api.state.mesh.cancel(request).await {
        Ok(Json(json!({"request": request, "cancelled": true})))
    } else {
        Err(ApiError::NoSuchRequest { request })
    }
}

/// The status now and after each change as events without a name, and whatever happens as events with one, until the
/// server stops.
pub(crate) async fn events(State(api): State<Arc<Api>>) -> Response {
    let happens = api.state.mesh.events();
    let mut changes = api.state.mesh.watch();
    changes.mark_changed();
    let watching = Watching { changes, happens, phase: api.phase.clone(), next_status: Instant::now() };
    let next = async |mut watching: Watching| watching.next().await.map(|event| (event, watching));
    answer::events(stream::unfold(watching, next))
}

/// A client that watches the mesh.
struct Watching {
    changes: watch::Receiver<Arc<MeshStatus>>,
    happens: EventReader,
    phase: watch::Receiver<Phase>,
    /// A status is sent no earlier than that.
    next_status: Instant,
}

impl Watching {
    async fn next(&mut self) -> Option<Event> {
        let Self { changes, happens, phase, next_status } = self;
        let changed = async {
            sleep_until(*next_status).await;
            changes.changed().await
        };
        tokio::select! {
            biased;
            () = Phase::Draining.reached(phase) => None,
            changed = changed => {
                changed.ok()?;
                *next_status = Instant::now() + EVENT_INTERVAL;
                let status = Arc::clone(&changes.borrow_and_update());
                Event::default().json_data(&*status).ok()
            }
            heard = happens.next() => match heard? {
                Heard::Event(event) => Event::default().event(event.name()).json_data(ToldEvent::from(&*event)).ok(),
                Heard::Lost(events) => Event::default().event("lost").json_data(json!({"events": events})).ok(),
            },
        }
    }
}

pub(crate) async fn models(State(api): State<Arc<Api>>) -> Json<Value> {
    let names = [&api.state.text.name].into_iter().chain(&api.state.names);
    let listed: Vec<Value> = names.map(|name| described(&api, name)).collect();
    Json(json!({"object": "list", "data": listed}))
}

pub(crate) async fn model(
    State(api): State<Arc<Api>>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    // What does not decode names no model either.
    let asked = id.as_ref().map_or(uri.path(), |Path(id)| id);
    api.check_model(Some(asked))?;
    // Clients look for the name that they have asked for.
    Ok(Json(described(&api, asked)))
}

/// What this program is, as vLLM says it.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The model as OpenAI lists one, with vLLM's name for its context.
fn described(api: &Api, name: &str) -> Value {
    let text = &api.state.text;
    json!({
        "id": name,
        "object": "model",
        "created": api.created_s,
        "owned_by": "qmesh",
        "max_model_len": text.context,
    })
}
