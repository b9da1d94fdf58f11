//! Ollama's API: `POST /api/chat` and `POST /api/generate`, vectors of texts, and what it says of models.

pub(crate) mod embed;
pub(crate) mod models;
mod options;
mod request;
mod writer;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};

use qmesh_models::tokenizer::Specials;

use self::{
    options::drawing,
    request::{ChatRequest, GenerateRequest, Shared},
    writer::{AnswerWriter, Manner},
};
use super::{
    Api, blocking,
    body::Share,
    caller::Caller,
    chat::{Turn, told},
    error::ApiError,
    grammar::AskedGrammar,
    relay::relay,
    unsupported::{Kind, refuse_unsupported},
};
use crate::text::Gap;

/// Answers a conversation.
pub(crate) async fn chat(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (mut shared, chat, share) = read::<ChatRequest>(&api, request).await?;
    shared.check()?;
    let mut drawing = drawing(&api, shared.options(), shared.grammar.take(), caller).await?;
    drawing.take_form("format", shared.form()?).await?;
    let (delivery, writer) = (shared.delivery(), AnswerWriter::new(Manner::Chat, shared.model_name(&api)));
    if chat.is_empty() {
        return Ok(Json(writer.loaded()).into_response());
    }
    let turn = Turn::read(chat.said(shared.thinking()?)?)?;
    let (choices, tools) = turn.begin(&api, drawing, share).await?.parted();
    Ok(told(relay(choices, writer, delivery).await?, tools))
}

/// Answers a prompt.
pub(crate) async fn generate(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (mut shared, asked, share) = read::<GenerateRequest>(&api, request).await?;
    shared.check()?;
    asked.check()?;
    let mut drawing = drawing(&api, shared.options(), shared.grammar.take(), caller).await?;
    drawing.take_form("format", shared.form()?).await?;
    let (delivery, writer) = (shared.delivery(), AnswerWriter::new(Manner::Generate, shared.model_name(&api)));
    let thinking = shared.thinking()?;
    let choices = match asked.prompt() {
        None => return Ok(Json(writer.loaded()).into_response()),
        Some(prompt) if asked.suffix().is_some() => {
            let gap = Gap { before: prompt, after: asked.suffix().unwrap_or_default(), ..Gap::default() };
            drawing.go_on(&api, "prompt", share, move |text| text.infill_prompt(&gap)).await?
        }
        Some(prompt) if asked.is_raw() => {
            drawing.go_on(&api, "prompt", share, move |text| text.raw_prompt(&prompt, Specials::Parse)).await?
        }
        Some(prompt) => {
            let turn = Turn::read(asked.said(prompt, thinking))?;
            turn.begin(&api, drawing, share).await?.parted().0
        }
    };
    relay(choices, writer, delivery).await
}

/// Reads a request for the model that is served: what both kinds share, and its own.
async fn read<T: Kind>(api: &Api, request: Request) -> Result<(Shared, T, Share), ApiError> {
    let (body, share) = api.body(request).await?;
    let parsing = move || {
        let body = body.parsed()?;
        let (mut shared, own): (Shared, T) = (body.read()?, body.read()?);
        refuse_unsupported::<T>(&body)?;
        shared.grammar = AskedGrammar::read(&body)?;
        Ok::<_, ApiError>((shared, own))
    };
    let (shared, own) = blocking(parsing).await??;
    api.check_model(shared.model())?;
    Ok((shared, own, share))
}
