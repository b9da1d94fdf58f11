//! `POST /completion`: a text goes on, as clients of llama-server ask for it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde::Deserialize;

use super::wishes::Wishes;
use crate::{
    api::{
        Api,
        caller::Caller,
        error::ApiError,
        prompts::{SentPrompts, prompts},
        unsupported::Kind,
    },
    text::TextModel,
};

/// Most prompts of one request.
const PROMPTS: usize = 64;
const PROMPT: &str = "prompt";

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Option<SentPrompts>,
    n_probs: Option<i64>,
    return_tokens: Option<bool>,
    response_fields: Option<Vec<String>>,
}

impl Kind for CompletionRequest {
    // The order of samplers is ours, nothing that fits is shortened, every request finds what earlier ones have left, and how deep a
    // text is indented or how long it may take are the wishes of editors, which would do without an answer otherwise.
    const HONOURED: &'static [&'static str] = &[
        "n_indent",
        "n_keep",
        "n_probs",
        "response_fields",
        "return_progress",
        "return_tokens",
        "samplers",
        "t_max_predict_ms",
        "timings_per_token",
    ];
}

/// Continues prompts.
pub(crate) async fn completion(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, asked, share) = api.read::<CompletionRequest>(request).await?;
    let CompletionRequest { prompt, n_probs, return_tokens, response_fields } = asked;
    let wishes = Wishes { n_probs, return_tokens, response_fields };
    let prompts = prompts(PROMPT, prompt, PROMPTS)?;
    let encode = move |text: &TextModel| prompts.iter().map(|prompt| prompt.ids(PROMPT, text)).collect();
    wishes.answer(&api, params, caller, PROMPT, share, encode).await
}
