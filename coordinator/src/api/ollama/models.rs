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
    text::TextModel,
};

/// The version of Ollama whose API this is: clients want one that is new enough for them.
const VERSION: &str = "0.13.0";
/// What a template that knows thoughts contains.
const THOUGHTS: [&str; 6] =
    ["enable_thinking", "reasoning_effort", "<think>", "[THINK]", "<seed:think>", "<|channel|>"];

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
    let (family, facts) = (&text.family, &text.facts);
    let mut about = json!({
        "general.architecture": family,
        "general.name": text.name,
        "general.parameter_count": facts.parameters,
    });
    about[format!("{family}.context_length")] = text.context.into();
    about[format!("{family}.embedding_length")] = text.hidden.into();
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": template,
        "modified_at": modified(&api),
        "details": details(&api),
        "model_info": about,
        "capabilities": capabilities(text, template),
    })))
}

/// What the model can do, by Ollama's words. Any model can be told of tools.
fn capabilities(text: &TextModel, template: &str) -> Vec<&'static str> {
    let known = [
        ("completion", true),
        ("tools", text.template.is_ok()),
        ("thinking", THOUGHTS.iter().any(|mark| template.contains(mark))),
        ("insert", text.tokenizer.infill().is_some()),
        ("embedding", text.facts.for_vectors),
    ];
    known.into_iter().filter_map(|(word, can)| can.then_some(word)).collect()
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
        "digest": api.state.text.facts.digest,
        "details": details(api),
    })
}

fn details(api: &Api) -> Value {
    let (family, facts) = (&api.state.text.family, &api.state.text.facts);
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": facts.parameter_size(),
        "quantization_level": facts.quantization,
    })
}

/// When it began to be served.
fn modified(api: &Api) -> String {
    stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(api.created_s))
}
