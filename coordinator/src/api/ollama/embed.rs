//! Ollama's vectors of texts: `POST /api/embed`, and `POST /api/embeddings` of before.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::api::{
    Api,
    body::Share,
    caller::Caller,
    error::ApiError,
    json::OneOrMany,
    prompts::Prompt,
    unsupported::Kind,
    vectors::{VectorJob, Vectors},
};

/// Most texts of one request.
const TEXTS: usize = 2048;

#[derive(Debug, Deserialize)]
struct EmbedRequest {
    model: Option<String>,
    input: Option<OneOrMany<String>>,
    dimensions: Option<i64>,
    #[expect(dead_code, reason = "looked at for what it is: a text that does not fit is refused, whatever it says")]
    truncate: Option<bool>,
    #[expect(dead_code, reason = "looked at for what they are: nothing is drawn")]
    options: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct EmbeddingsRequest {
    model: Option<String>,
    prompt: Option<String>,
    #[expect(dead_code, reason = "looked at for what they are: nothing is drawn")]
    options: Option<Map<String, Value>>,
}

impl Kind for EmbedRequest {
    const HONOURED: &'static [&'static str] = &["options", "truncate"];
}

impl Kind for EmbeddingsRequest {
    const HONOURED: &'static [&'static str] = &["options"];
}

#[derive(Debug, Serialize)]
pub(crate) struct Embedded {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

#[derive(Debug, Serialize)]
pub(crate) struct EmbeddedOne {
    embedding: Vec<f32>,
}

/// Makes vectors of texts.
pub(crate) async fn embed(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Embedded>, ApiError> {
    let caller = Caller::of(&request);
    let (asked, share) = api.read_own::<EmbedRequest>(request).await?;
    api.check_model(asked.model.as_deref())?;
    let texts = match asked.input {
        None => Vec::new(),
        Some(OneOrMany::One(text)) if text.is_empty() => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    if texts.len() > TEXTS {
        return Err(ApiError::invalid("input", format!("{} texts in one request, want at most {TEXTS}", texts.len())));
    }
    let (prompts, client) = (texts.into_iter().map(Prompt::from).collect(), caller.client(None));
    let job = VectorJob { param: "input", prompts, dimensions: asked.dimensions, client };
    let Vectors { vectors, prompt_tokens, started } = job.run(&api, share).await?;
    Ok(Json(Embedded {
        model: asked.model.unwrap_or_else(|| api.state.text.name.clone()),
        embeddings: vectors,
        total_duration: u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        load_duration: 0,
        prompt_eval_count: prompt_tokens,
    }))
}

/// Makes a vector of a text; an empty one only asks for the model to be there.
pub(crate) async fn embeddings(State(api): State<Arc<Api>>, request: Request) -> Result<Json<EmbeddedOne>, ApiError> {
    let caller = Caller::of(&request);
    let (asked, share): (EmbeddingsRequest, Share) = api.read_own(request).await?;
    api.check_model(asked.model.as_deref())?;
    let prompts = asked.prompt.filter(|prompt| !prompt.is_empty()).map(Prompt::from).into_iter().collect();
    let job = VectorJob { param: "prompt", prompts, dimensions: None, client: caller.client(None) };
    let vectors = job.run(&api, share).await?.vectors;
    Ok(Json(EmbeddedOne { embedding: vectors.into_iter().next().unwrap_or_default() }))
}
