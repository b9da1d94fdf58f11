//! `POST /completion`: a text goes on, as clients of llama-server ask for it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use qmesh_models::tokenizer::{Affixes, Specials};
use serde::Deserialize;
use serde_json::Value;

use super::wishes::Wishes;
use crate::{
    api::{
        Api,
        caller::Caller,
        error::{ApiError, PromptTokens},
        prompts::Prompt,
        unsupported::Kind,
    },
    text::TextModel,
};

/// Most prompts of one request.
const PROMPTS: usize = 64;
const PROMPT: &str = "prompt";

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Option<Value>,
    n_probs: Option<i64>,
    return_tokens: Option<bool>,
    response_fields: Option<Vec<String>>,
}

impl Kind for CompletionRequest {
    // The order of samplers is ours, nothing that fits is shortened, every request finds what earlier ones have left, and how deep a
    // text is indented or how long it may take are the wishes of editors, which would do without an answer otherwise.
    const HONOURED: &'static [&'static str] =
        &["n_indent", "n_keep", "n_probs", "response_fields", "return_tokens", "samplers", "t_max_predict_ms"];
}

/// Continues prompts.
pub(crate) async fn completion(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, asked, share) = api.read::<CompletionRequest>(request).await?;
    let CompletionRequest { prompt, n_probs, return_tokens, response_fields } = asked;
    let wishes = Wishes { n_probs, return_tokens, response_fields };
    let encode = move |text: &TextModel| prompts(prompt.unwrap_or_default(), text);
    wishes.answer(&api, params, caller, PROMPT, share, encode).await
}

/// The ids of each prompt.
fn prompts(sent: Value, text: &TextModel) -> Result<Vec<Vec<u32>>, ApiError> {
    let Value::Array(list) = sent else { return Ok(vec![one(sent, text)?]) };
    let is_piece = |value: &Value| value.is_number() || value.is_string();
    // A list with a number among its own entries is one prompt, of tokens and texts.
    if list.iter().all(is_piece) && list.iter().any(Value::is_number) {
        return Ok(vec![joined(list, text)?]);
    }
    if !(1..=PROMPTS).contains(&list.len()) {
        return Err(wrong(&format!("a list of 1 to {PROMPTS} prompts")));
    }
    list.into_iter().map(|prompt| one(prompt, text)).collect()
}

fn one(sent: Value, text: &TextModel) -> Result<Vec<u32>, ApiError> {
    match sent {
        Value::String(prompt) => Prompt::Text(prompt).ids(PROMPT, text),
        Value::Array(pieces) => joined(pieces, text),
        Value::Object(mut fields) => {
            let media =
                fields.get("multimodal_data").is_some_and(|data| data.as_array().is_none_or(|all| !all.is_empty()));
            if media {
                return Err(ApiError::Unsupported { param: "prompt.multimodal_data", hint: "only text is read" });
            }
            match fields.remove("prompt_string") {
                Some(Value::String(prompt)) => Prompt::Text(prompt).ids(PROMPT, text),
                Some(_) | None => Err(wrong("an object with 'prompt_string'")),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Err(wrong("a string, token ids, or a list of these")),
    }
}

/// The ids of a prompt that is put together from tokens and texts.
fn joined(pieces: Vec<Value>, text: &TextModel) -> Result<Vec<u32>, ApiError> {
    let mut ids = Vec::new();
    for (at, piece) in pieces.into_iter().enumerate() {
        match piece {
            Value::String(piece) if at == 0 => ids = Prompt::Text(piece).ids(PROMPT, text)?,
            Value::String(piece) => {
                let least = ids.len() + text.tokenizer.fewest_tokens(&piece, Specials::Parse);
                // Splitting takes a hundred times the memory of a text.
                if least > text.context {
                    let prompt_tokens = PromptTokens::AtLeast(least);
                    return Err(ApiError::ContextExceeded { param: PROMPT, prompt_tokens, context: text.context });
                }
                let split = text.tokenizer.encode(&piece, Specials::Parse, Affixes::None);
                ids.extend(split.map_err(|error| ApiError::invalid(PROMPT, error.to_string()))?);
            }
            Value::Number(id) => {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                ids.push(id.ok_or_else(|| wrong("a string, token ids, or a list of these"))?);
            }
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
                return Err(wrong("a string, token ids, or a list of these"));
            }
        }
    }
    Prompt::Ids(ids).ids(PROMPT, text)
}

fn wrong(wanted: &str) -> ApiError {
    ApiError::invalid(PROMPT, format!("'prompt' must be {wanted}"))
}
