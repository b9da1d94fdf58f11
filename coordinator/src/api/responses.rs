//! OpenAI's responses: `POST /v1/responses`, without a memory of earlier ones.

mod items;
mod request;
mod writer;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};

use serde_json::{Value, json};

use self::{request::ResponsesRequest, writer::ResponseWriter};
use super::{
    Api,
    caller::Caller,
    chat::{Drawing, told},
    error::ApiError,
    now_s,
    params::random,
    relay::relay,
};

/// Answers a conversation.
pub(crate) async fn responses(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, asked, share) = api.read::<ResponsesRequest>(request).await?;
    let delivery = params.delivery()?;
    asked.check()?;
    let max_tokens = asked.max_tokens()?.or(params.max_tokens(1)?);
    let mut drawing = Drawing::single(&api, params, max_tokens, caller)?;
    drawing.take_form("text.format", asked.form()?).await?;
    let response = asked.echoed(&api.state.text.name, now_s());
    let (choices, tools) = asked.turn()?.begin(&api, drawing, share).await?.parted();
    let writer = ResponseWriter::new(format!("{:016x}{:016x}", random(), random()), response);
    Ok(told(relay(choices, writer, delivery).await?, tools))
}

/// Says how long the prompt is that a conversation would become, and answers nothing.
pub(crate) async fn input_tokens(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (_, asked, share) = api.read::<ResponsesRequest>(request).await?;
    asked.check()?;
    let prompt = asked.turn()?.prompt(&api, share).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": prompt.ids.len()})))
}
