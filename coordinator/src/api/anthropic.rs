//! Anthropic's messages: `POST /v1/messages` and `POST /v1/messages/count_tokens`.

mod conversation;
mod request;
mod writer;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use serde_json::{Value, json};

use self::{request::MessagesRequest, writer::MessageWriter};
use super::{
    Api,
    caller::Caller,
    chat::{Drawing, told},
    error::ApiError,
    params::random,
    relay::relay,
};

/// Answers a conversation.
pub(crate) async fn messages(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (mut params, asked, share) = api.read::<MessagesRequest>(request).await?;
    let delivery = params.delivery()?;
    asked.check()?;
    let Some(max_tokens) = params.max_tokens(1)? else {
        return Err(ApiError::invalid("max_tokens", "'max_tokens' must say how long the answer may be"));
    };
    params.user = asked.user().or(params.user);
    let mut drawing = Drawing::single(&api, params, Some(max_tokens), caller)?;
    drawing.take_form("output_config.format", asked.form()?).await?;
    let (choices, tools) = asked.turn()?.begin(&api, drawing, share).await?.parted();
    let writer = MessageWriter::new(format!("msg_{:016x}", random()), api.state.text.name.clone());
    Ok(told(relay(choices, writer, delivery).await?, tools))
}

/// Says how long a conversation is, and answers nothing.
pub(crate) async fn count_tokens(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (_, asked, share) = api.read::<MessagesRequest>(request).await?;
    asked.check()?;
    let prompt = asked.turn()?.prompt(&api, share).await?;
    Ok(Json(json!({"input_tokens": prompt.ids.len()})))
}
