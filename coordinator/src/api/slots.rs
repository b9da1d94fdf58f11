//! `GET /slots`: what runs, as llama-server lists it. What is said in it is nobody's business and is not shown.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, error::ApiError};
use crate::{
    generate::GenerateError,
    mesh::status::{SequencePhase, SequenceStatus},
};

#[derive(Debug, Deserialize)]
pub(crate) struct SlotsQuery {
    /// Any value but an empty one asks for an error where all are taken.
    fail_on_no_slot: Option<String>,
}

/// A slot for each sequence on the stages, and one for each session of full length that there is room for besides.
pub(crate) async fn slots(
    State(api): State<Arc<Api>>,
    query: Result<Query<SlotsQuery>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::invalid("fail_on_no_slot", error.body_text()))?;
    let sequences = api.state.mesh.sequences().await.ok_or(GenerateError::ShuttingDown)?;
    let running = sequences.iter().filter(|sequence| sequence.phase == SequencePhase::Running);
    let status = api.state.mesh.status();
    let total = (status.kv_positions / status.context.max(1)).max(1);
    let mut slots: Vec<Value> = running.map(taken).collect();
    let idle = total.saturating_sub(slots.len());
    if idle == 0 && query.fail_on_no_slot.is_some_and(|asked| !asked.is_empty()) {
        return Err(GenerateError::QueueFull { waiting: status.waiting }.into());
    }
    slots.extend((0..idle).map(|_| json!({"is_processing": false})));
    for (id, slot) in slots.iter_mut().enumerate() {
        slot["id"] = id.into();
        slot["n_ctx"] = status.context.into();
    }
    Ok(Json(slots.into()))
}

fn taken(sequence: &SequenceStatus) -> Value {
    let SequenceStatus { request, prompt_tokens, cached_tokens, computed_tokens, generated_tokens, max_tokens, .. } =
        *sequence;
    json!({
        "id_task": request,
        "is_processing": true,
        "n_prompt_tokens": prompt_tokens,
        "n_prompt_tokens_processed": computed_tokens.min(prompt_tokens).saturating_sub(cached_tokens),
        "n_prompt_tokens_cache": cached_tokens,
        "params": {"n_predict": max_tokens, "temperature": sequence.temperature, "seed": sequence.seed},
        "next_token": [{
            "has_next_token": generated_tokens < max_tokens,
            "n_remain": max_tokens.saturating_sub(generated_tokens),
            "n_decoded": generated_tokens,
        }],
    })
}
