//! `POST /v1/chat/completions`.

mod ending;
mod messages;
mod shape;
mod thinking;
mod tools;
mod transcript;
mod turn;

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::Response,
};
use qmesh_models::tokenizer::ControlTokens;
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(crate) use self::{
    ending::begun_or_asked,
    transcript::Transcript,
    turn::{Drawing, Said, Turn, told},
};
use self::{
    ending::ending,
    messages::{ChatMessage, templated},
    shape::{ChatShape, Dialect},
    thinking::Thinking,
    tools::{ToolParams, Toolbox},
};
use super::{
    Api,
    answer::{answer, counted},
    caller::Caller,
    error::ApiError,
    json::{Document, Object},
    params::{Delivery, TOP_LOGPROBS},
    ranges::integer,
    unsupported::{Kind, refuse_unsupported},
};
use crate::text::{ChatWanted, TokenDetail};

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Option<Vec<Object<ChatMessage>>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    /// Further variables of the template, as vLLM and llama.cpp name them.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the prompt ends with the head of an answer, and whether it ends within the last message, as vLLM has both.
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// The older names of tools and of the choice among them.
    functions: Option<Vec<Value>>,
    function_call: Option<Value>,
    /// About thoughts: OpenAI's, that of many templates, llama.cpp's, vLLM's and SGLang's.
    reasoning_effort: Option<String>,
    enable_thinking: Option<bool>,
    reasoning_format: Option<String>,
    include_reasoning: Option<bool>,
    separate_reasoning: Option<bool>,
    /// Whether the answer shows the prompt.
    verbose: Option<bool>,
}

impl Kind for ChatRequest {
    const HONOURED: &'static [&'static str] = &[
        "add_generation_prompt",
        // A template says where a text begins, and it begins so once.
        "add_special_tokens",
        "continue_final_message",
        "enable_thinking",
        "function_call",
        "functions",
        "include_reasoning",
        "reasoning_effort",
        "reasoning_format",
        "return_progress",
        "separate_reasoning",
        "timings_per_token",
        "tool_choice",
        "tools",
    ];
}

/// Answers a chat.
pub(crate) async fn chat(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let caller = Caller::of(&request);
    let (params, chat, share) = api.read::<ChatRequest>(request).await?;
    let delivery = params.delivery()?;
    let top = chat.alternatives()?;
    let detail = if top.is_some() { TokenDetail::On } else { TokenDetail::Off };
    let (timings, verbose) = (params.timings(), chat.verbose == Some(true));
    let drawing = Drawing {
        choices: params.choices()?,
        max_tokens: params.max_tokens(1)?,
        sampling: params.sampling(&api.state.text, top.unwrap_or(0))?,
        stops: params.stops()?,
        ends: params.ends(&api.state.text)?,
        detail: counted(detail, timings),
        client: caller.client(params.user.as_deref()),
        progress: params.progress(),
        grammar: params.grammar,
    };
    let (turn, dialect) = chat.turn()?;
    let (choices, tools) = turn.begin(&api, drawing, share).await?.parted();
    let shape = ChatShape { detail, dialect };
    let mut envelope = api.envelope("chatcmpl");
    // What spells out a prompt costs as much as the prompt: nobody has it in each chunk.
    if let (true, Delivery::Whole, [ids, ..]) = (verbose, delivery, choices.prompts()) {
        envelope.shown_prompt = Some(api.state.text.tokenizer.decode(ids, ControlTokens::Show));
    }
    let response = answer(choices, shape, envelope, delivery, timings).await?;
    Ok(told(response, tools))
}

/// Shows the prompt that a chat would become, as llama-server does.
pub(crate) async fn apply_template(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (_, chat, share) = api.read::<ChatRequest>(request).await?;
    let (turn, _) = chat.turn()?;
    Ok(Json(json!({"prompt": turn.text(&api, share).await?})))
}

/// Says how long the prompt is that a chat would become, as OpenAI does for responses and llama-server for chats.
pub(crate) async fn input_tokens(State(api): State<Arc<Api>>, request: Request) -> Result<Json<Value>, ApiError> {
    let (_, chat, share) = api.read::<ChatRequest>(request).await?;
    let (turn, _) = chat.turn()?;
    let ids = turn.prompt(&api, share).await?.ids;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": ids.len()})))
}

/// The conversation of a body that is one of a chat, beside whatever else it is. Blocks, as parsing does.
///
/// # Errors
/// What is wrong with it, by the parameter's name.
pub(crate) fn turn_of(body: &Document) -> Result<Turn, ApiError> {
    refuse_unsupported::<ChatRequest>(body)?;
    Ok(body.read::<ChatRequest>()?.turn()?.0)
}

impl ChatRequest {
    /// The conversation, and by which names calls go in its answer.
    fn turn(self) -> Result<(Turn, Dialect), ApiError> {
        let thinking = self.thinking();
        let thoughts = thinking.wanted()?;
        let mut variables = self.chat_template_kwargs.clone().unwrap_or_default();
        thinking.set(&mut variables)?;
        let wishes = (self.continue_final_message, self.add_generation_prompt);
        let (messages, tools) = self.parted();
        let messages = templated(messages)?;
        let ending = ending(&messages, wishes.0, wishes.1)?;
        let Toolbox { tools, choice, calls, strict, dialect } = tools.read()?;
        let wanted = ChatWanted { choice, calls, strict, thoughts };
        Ok((Turn { param: "messages", messages, tools, wanted, variables, ending }, dialect))
    }

    fn thinking(&self) -> Thinking {
        Thinking {
            effort: self.reasoning_effort.clone(),
            enable: self.enable_thinking,
            format: self.reasoning_format.clone(),
            include: self.include_reasoning,
            separate: self.separate_reasoning,
        }
    }

    /// The messages, and what is said about tools.
    fn parted(self) -> (Option<Vec<Object<ChatMessage>>>, ToolParams) {
        let Self { tools, tool_choice, parallel_tool_calls, functions, function_call, .. } = self;
        (self.messages, ToolParams { tools, tool_choice, parallel_tool_calls, functions, function_call })
    }

    /// How many alternatives to report beside each token; `None` without log-probabilities.
    fn alternatives(&self) -> Result<Option<u16>, ApiError> {
        let top = integer("top_logprobs", self.top_logprobs, 0..=TOP_LOGPROBS)?;
        match (self.logprobs.unwrap_or(false), top) {
            (false, Some(1..)) => Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true")),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.and_then(|top| u16::try_from(top).ok()).unwrap_or(0))),
        }
    }
}
