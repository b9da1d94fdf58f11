//! `POST /v1/chat/completions`.

mod messages;
mod shape;
mod thinking;
mod tools;

use std::{sync::Arc, time::SystemTime};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    response::Response,
};
use qmesh_models::{chat::RenderOptions, tokenizer::LeadingSpace};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::{
    messages::{ChatMessage, templated},
    shape::ChatShape,
    thinking::Thinking,
    tools::{ToolParams, Toolbox},
};
use super::{
    Api,
    answer::answer,
    blocking,
    choices::{Choices, Job},
    error::ApiError,
    grammar::AskedGrammar,
    json::Object,
    params::{TOP_LOGPROBS, integer},
    unsupported::Kind,
};
use crate::{
    generate::PromptRows,
    text::{ChatWanted, TokenDetail, ToolsShown},
};

/// Says how the model was told of the tools, where its template does not know any.
const TOOLS_HEADER: HeaderName = HeaderName::from_static("x-qmesh-tools");

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Option<Vec<Object<ChatMessage>>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    /// Further variables of the template, as vLLM and llama.cpp name them.
    chat_template_kwargs: Option<Map<String, Value>>,
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
}

impl Kind for ChatRequest {
    const HONOURED: &'static [&'static str] = &[
        // A template says where a text begins, and it begins so once.
        "add_special_tokens",
        "enable_thinking",
        "function_call",
        "functions",
        "include_reasoning",
        "reasoning_effort",
        "reasoning_format",
        "separate_reasoning",
        "tool_choice",
        "tools",
    ];
}

/// Answers a chat.
pub(crate) async fn chat(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let address = Api::address(&request);
    let (params, chat, share) = api.read::<ChatRequest>(request).await?;
    let delivery = params.delivery()?;
    let top = chat.alternatives()?;
    let detail = if top.is_some() { TokenDetail::On } else { TokenDetail::Off };
    let mut job = Job {
        prompts: Vec::new(),
        param: "messages",
        choices: params.choices()?,
        max_tokens: params.max_tokens(1)?,
        sampling: params.sampling(&api.state.text, top.unwrap_or(0))?,
        stops: params.stops()?,
        detail,
        leading_space: LeadingSpace::Strip,
        reading: None,
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: Api::client(address, params.user.as_deref()),
    };
    let thinking = chat.thinking();
    let thoughts = thinking.wanted()?;
    let mut extra = chat.chat_template_kwargs.clone().unwrap_or_default();
    thinking.set(&mut extra)?;
    let (messages, tools) = chat.parted();
    let messages = templated(messages)?;
    let Toolbox { tools, choice, calls, dialect } = tools.read()?;
    let wanted = ChatWanted { choice, calls, thoughts };
    api.check_ready()?;
    job.grammar = api.compile(params.grammar).await?;
    let text = Arc::clone(&api.state.text);
    let encode = move || {
        let _held = share;
        let options = RenderOptions { extra, tools: &tools, ..RenderOptions::new(SystemTime::now()) };
        text.chat(&messages, &options, &wanted)
    };
    let prompt = blocking(encode).await?.map_err(|error| ApiError::text("messages", &error))?;
    job.prompts.push(prompt.ids);
    job.reading = Some(prompt.reading);
    if let Some(forced) = &prompt.forced {
        let call = AskedGrammar::call(forced, prompt.thoughts_end, job.grammar.is_some())?;
        job.grammar = api.compile(Some(call)).await?;
    }
    let choices = Choices::start(&api, job)?;
    let mut response = answer(choices, ChatShape { detail, dialect }, api.envelope("chatcmpl"), delivery).await?;
    if prompt.tools == ToolsShown::Generic {
        response.headers_mut().insert(TOOLS_HEADER, HeaderValue::from_static("generic"));
    }
    Ok(response)
}

impl ChatRequest {
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
