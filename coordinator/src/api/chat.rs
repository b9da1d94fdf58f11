//! `POST /v1/chat/completions`.

use std::{sync::Arc, time::SystemTime};

use axum::{
    extract::{Request, State},
    response::Response,
};
use qmesh_models::{
    chat::{Message, RenderOptions},
    tokenizer::LeadingSpace,
};
use qmesh_net::Sampled;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Api,
    answer::{Shape, answer, finish_reason},
    blocking,
    choices::{Choices, Job, Whole},
    error::ApiError,
    json::{Object, OneOrMany},
    params::{TOP_LOGPROBS, integer},
    unsupported::Kind,
};
use crate::{
    generate::PromptRows,
    text::{Spelled, TextDelta, TextEndReason, TokenDetail, TokenText, Visibility},
};

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Option<Vec<Object<ChatMessage>>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    /// Further variables of the template, as vLLM and llama.cpp name them.
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: Option<String>,
    content: Option<OneOrMany<Object<Part>>>,
    name: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
    /// Thoughts by the names that servers and templates have for them.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    thinking: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
}

impl Kind for ChatRequest {
    // A template says where a text begins, and it begins so once.
    const HONOURED: &'static [&'static str] = &["add_special_tokens"];
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
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: Api::client(address, params.user.as_deref()),
    };
    let messages = ChatRequest::messages(chat.messages)?;
    let extra = chat.chat_template_kwargs.unwrap_or_default();
    api.check_ready()?;
    job.grammar = api.compile(params.grammar).await?;
    let text = Arc::clone(&api.state.text);
    let encode = move || {
        let _held = share;
        let options = RenderOptions { extra, ..RenderOptions::new(SystemTime::now()) };
        text.chat_prompt(&messages, &options)
    };
    job.prompts.push(blocking(encode).await?.map_err(|error| ApiError::text("messages", &error))?);
    answer(Choices::start(&api, job)?, ChatShape { detail }, api.envelope("chatcmpl"), delivery).await
}

impl ChatRequest {
    /// How many alternatives to report beside each token; `None` without log-probabilities.
    fn alternatives(&self) -> Result<Option<u16>, ApiError> {
        let top = integer("top_logprobs", self.top_logprobs, 0..=TOP_LOGPROBS)?;
        match (self.logprobs.unwrap_or(false), top) {
            (false, Some(1..)) => Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true")),
            (false, _) => Ok(None),
            (true, top) => Ok(Some(top.and_then(|top| u16::try_from(top).ok()).unwrap_or(0))),
        }
    }

    /// The messages as templates know them.
    fn messages(messages: Option<Vec<Object<ChatMessage>>>) -> Result<Vec<Message>, ApiError> {
        let messages = messages.unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid("messages", "'messages' must hold at least one message"));
        }
        messages.into_iter().enumerate().map(|(index, Object(message))| message.templated(index)).collect()
    }
}

impl ChatMessage {
    /// Message `index` as templates know it.
    fn templated(self, index: usize) -> Result<Message, ApiError> {
        let role = templated_role(index, self.role.as_deref())?;
        let calls = self.tool_calls.filter(|calls| !calls.is_empty());
        let content = match self.content {
            Some(OneOrMany::One(text)) => Value::from(text),
            Some(OneOrMany::Many(parts)) => Value::from(joined(index, &parts)?),
            None if role == "assistant" && calls.is_some() => Value::Null,
            None => {
                return Err(ApiError::invalid(format!("messages[{index}].content"), "a message needs a 'content'"));
            }
        };
        let texts = [
            ("name", self.name),
            ("tool_call_id", self.tool_call_id),
            ("reasoning_content", self.reasoning_content),
            ("reasoning", self.reasoning),
            ("thinking", self.thinking),
        ];
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?))));
        let calls = calls.map(|calls| ("tool_calls".to_owned(), calls.into_iter().map(templated_call).collect()));
        Ok(Message { role: role.to_owned(), content: Some(content), extra: texts.chain(calls).collect() })
    }
}

/// The role of message `index` as templates know it.
fn templated_role(index: usize, role: Option<&str>) -> Result<&'static str, ApiError> {
    match role {
        // What OpenAI calls its newer system messages; templates know only the older name.
        Some("system" | "developer") => Ok("system"),
        Some("user") => Ok("user"),
        Some("assistant") => Ok("assistant"),
        Some("tool") => Ok("tool"),
        Some(_) | None => Err(ApiError::invalid(
            format!("messages[{index}].role"),
            "the 'role' of a message is one of system, developer, user, assistant and tool",
        )),
    }
}

/// A tool call as templates know it: OpenAI writes arguments as a text that holds JSON, templates read the JSON itself.
fn templated_call(mut call: Value) -> Value {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
    {
        *arguments = Value::Object(object);
    }
    call
}

/// The text of the parts of message `index`, a line each.
fn joined(index: usize, parts: &[Object<Part>]) -> Result<String, ApiError> {
    let texts = parts.iter().enumerate().map(|(place, Object(part))| match (part.kind.as_deref(), &part.text) {
        (Some("text"), Some(text)) => Ok(text.as_str()),
        (Some("text"), None) => {
            Err(ApiError::invalid(format!("messages[{index}].content[{place}].text"), "a text part needs 'text'"))
        }
        _ => Err(ApiError::invalid(
            format!("messages[{index}].content[{place}].type"),
            "only parts of type 'text' are supported: this server takes no images, audio or files",
        )),
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

struct ChatShape {
    detail: TokenDetail,
}

impl ChatShape {
    fn chunk(index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
    }

    fn logprobs(&self, tokens: &[TokenText]) -> Value {
        match self.detail {
            TokenDetail::Off => Value::Null,
            TokenDetail::On => {
                let shown = tokens.iter().filter(|token| token.visibility == Visibility::Shown);
                json!({"content": shown.map(token_logprob).collect::<Vec<_>>(), "refusal": null})
            }
        }
    }
}

impl Shape for ChatShape {
    const OBJECTS: (&'static str, &'static str) = ("chat.completion", "chat.completion.chunk");

    fn opening(&self, index: usize) -> Option<Value> {
        Some(Self::chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None))
    }

    fn prompt(&self, index: usize, _: &[Sampled]) -> Value {
        Self::chunk(index, json!({}), Value::Null, None)
    }

    fn delta(&self, index: usize, delta: &TextDelta) -> Value {
        Self::chunk(index, json!({"content": delta.text}), self.logprobs(&delta.tokens), None)
    }

    fn end(&self, index: usize, reason: TextEndReason) -> Value {
        Self::chunk(index, json!({}), Value::Null, Some(finish_reason(reason)))
    }

    fn whole(&self, index: usize, whole: &Whole) -> Value {
        json!({
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": null},
            "logprobs": self.logprobs(&whole.tokens),
            "finish_reason": finish_reason(whole.reason),
        })
    }
}

fn token_logprob(token: &TokenText) -> Value {
    let one = |Spelled { text, bytes }: &Spelled, logprob| json!({"token": text, "logprob": logprob, "bytes": bytes});
    let mut entry = one(&token.spelled, token.logprob);
    entry["top_logprobs"] = token.top.iter().map(|(spelled, logprob)| one(spelled, Some(*logprob))).collect();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_read_the_arguments_of_a_call_as_json() {
        let call = |arguments: Value| json!({"id": "1", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(templated_call(call(json!("{\"a\": [1.5]}"))), call(json!({"a": [1.5]})));
        for as_it_is in [call(json!({"a": 1})), call(json!("[1]")), call(json!("{a")), json!({}), json!(3)] {
            assert_eq!(templated_call(as_it_is.clone()), as_it_is);
        }
    }
}
