//! What Ollama's API says of models: the one that is served.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::writer::stamp;
use crate::{
    api::{Api, error::ApiError},
    mesh::status::MeshState,
};

/// The version of Ollama whose API this is: clients want one that is new enough for them.
const VERSION: &str = "0.13.0";
/// What a template that knows thoughts contains.
const THOUGHTS: [&str; 3] = ["enable_thinking", "reasoning_effort", "<think>"];

#[derive(Debug, Deserialize)]
pub(crate) struct ShowRequest {
    model: Option<String>,
    /// The older name of the same.
    name: Option<String>,
}

/// The models that there are.
pub(crate) async fn tags(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(json!({"models": names(&api).map(|name| listed(&api, name)).collect::<Vec<_>>()}))
}

/// The models that can answer now.
pub(crate) async fn running(State(api): State<Arc<Api>>) -> Json<Value> {
    let ready = api.state.mesh.status().state == MeshState::Ready;
    let models = names(&api).filter(|_| ready).map(|name| {
        let mut model = listed(&api, name);
        model["size_vram"] = 0.into();
        model["context_length"] = api.state.text.context.into();
        // It stays: clients want a date, and this one is far.
        model["expires_at"] = stamp(SystemTime::now() + Duration::from_secs(365 * 24 * 3600)).into();
        model
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// More about the model.
pub(crate) async fn show(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (asked, _share) = api.read_plain::<ShowRequest>(request).await?;
    let Some(name) = asked.model.or(asked.name) else {
        return Err(ApiError::invalid("model", "'model' must name a model"));
    };
    api.check_model(Some(&name))?;
    let text = &api.state.text;
    let template = text.template.as_ref().map_or("", |template| template.source());
    let thinks = THOUGHTS.iter().any(|mark| template.contains(mark));
    let capabilities = ["completion"].into_iter().chain(text.template.as_ref().ok().map(|_| "tools"));
    let capabilities: Vec<_> = capabilities.chain(thinks.then_some("thinking")).collect();
    let mut facts = json!({"general.architecture": text.family, "general.name": text.name});
    facts[format!("{}.context_length", text.family)] = text.context.into();
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": template,
        "modified_at": modified(&api),
        "details": details(&api),
        "model_info": facts,
        "capabilities": capabilities,
    })))
}

/// The version of the API.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION, "qmesh": env!("CARGO_PKG_VERSION")}))
}

fn names(api: &Api) -> impl Iterator<Item = &String> {
    [&api.state.text.name].into_iter().chain(&api.state.names)
}

/// A model as lists have it; clients look for its name with a tag.
fn listed(api: &Api, name: &str) -> Value {
    let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
    let size: u64 = api.state.mesh.status().stages.iter().map(|stage| stage.weight_bytes).sum();
    json!({
        "name": name,
        "model": name,
        "modified_at": modified(api),
        "size": size,
        "digest": "",
        "details": details(api),
    })
}

fn details(api: &Api) -> Value {
    let family = &api.state.text.family;
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    })
}

/// When it began to be served.
fn modified(api: &Api) -> String {
    stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(api.created_s))
}
