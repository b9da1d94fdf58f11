//! `POST /tokenize`, `POST /detokenize` and `GET /props`, as clients of llama-server and vLLM ask them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
};
use qmesh_models::tokenizer::{Affixes, ControlTokens, Specials};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, answer::BUILD, body::Share, chat, error::ApiError};

#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    /// llama-server's word, and vLLM's.
    content: Option<String>,
    prompt: Option<String>,
    /// A conversation instead, as vLLM takes one: it is read as a chat's.
    messages: Option<Vec<Value>>,
    /// Whether the tokens that the model's texts begin and end with are added.
    #[serde(alias = "add_special_tokens")]
    add_special: Option<bool>,
    /// Whether spelled control tokens are tokens.
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Option<Vec<u32>>,
}

/// The ids of a text.
pub(crate) async fn tokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (body, share) = api.body(request).await?;
    let effort = body.effort();
    let parsing = move || {
        let body = body.parsed()?;
        let asked: TokenizeRequest = body.read()?;
        let turn = asked.messages.is_some().then(|| chat::turn_of(&body)).transpose()?;
        Ok::<_, ApiError>((asked, turn))
    };
    let (asked, turn) = effort.run(parsing).await??;
    api.check_model(asked.model.as_deref())?;
    let ids = match turn {
        Some(turn) => turn.prompt(&api, share).await?.ids,
        None => asked.ids(&api, share).await?,
    };
    let tokens: Vec<Value> = match asked.with_pieces.unwrap_or(false) {
        false => ids.iter().map(|&id| Value::from(id)).collect(),
        true => ids.iter().map(|&id| json!({"id": id, "piece": piece(&api, id)})).collect(),
    };
    Ok(Json(json!({"count": tokens.len(), "max_model_len": api.state.text.context, "tokens": tokens})))
}

impl TokenizeRequest {
    /// The ids of its text.
    async fn ids(&self, api: &Api, share: Share) -> Result<Vec<u32>, ApiError> {
        let Some(text) = self.content.clone().or(self.prompt.clone()) else {
            return Err(ApiError::invalid("content", "'content' (or 'prompt') must hold the text"));
        };
        let affixes = if self.add_special.unwrap_or(false) { Affixes::AsModel } else { Affixes::None };
        let specials = if self.parse_special.unwrap_or(true) { Specials::Parse } else { Specials::Plain };
        let model = Arc::clone(&api.state.text);
        let effort = share.effort;
        let encoding = move || {
            let _held = share;
            model.tokenizer.encode(&text, specials, affixes)
        };
        effort.run(encoding).await?.map_err(|error| ApiError::invalid("content", error.to_string()))
    }
}

/// The text of ids.
pub(crate) async fn detokenize(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (asked, _share) = api.read_plain::<DetokenizeRequest>(request).await?;
    api.check_model(asked.model.as_deref())?;
    let Some(ids) = asked.tokens else { return Err(ApiError::invalid("tokens", "'tokens' must hold token ids")) };
    let vocabulary = api.state.text.tokenizer.vocab_len();
    if let Some(at) = ids.iter().position(|&id| id as usize >= vocabulary) {
        return Err(ApiError::invalid(format!("tokens[{at}]"), format!("every token must be below {vocabulary}")));
    }
    let text = api.state.text.tokenizer.decode(&ids, ControlTokens::Show);
    Ok(Json(json!({"content": text, "prompt": text})))
}

/// What clients of llama-server want to know of the model.
pub(crate) async fn props(State(api): State<Arc<Api>>) -> Json<Value> {
    let (text, status) = (&api.state.text, api.state.mesh.status());
    let spelled = |id: Option<u32>| id.and_then(|id| text.tokenizer.text(id)).unwrap_or_default().to_owned();
    Json(json!({
        "default_generation_settings": {"n_ctx": text.context},
        "total_slots": (status.kv_positions / status.context.max(1)).max(1),
        "model_alias": text.name,
        // Where it lies on this machine is nobody's business.
        "model_path": text.name,
        "modalities": {"vision": false, "audio": false},
        "chat_template": text.template.as_ref().map_or("", |template| template.source()),
        "bos_token": spelled(text.tokenizer.bos()),
        "eos_token": spelled(text.tokenizer.eos()),
        "build_info": BUILD,
    }))
}

/// A token's text, or its bytes where they are none.
fn piece(api: &Api, id: u32) -> Value {
    let bytes = api.state.text.tokenizer.bytes(id);
    std::str::from_utf8(bytes).map_or_else(|_| Value::from(bytes), Value::from)
}
