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
    body::OneOrMany,
    choices::{Choices, Job, Whole},
    error::ApiError,
    params::{TOP_LOGPROBS, integer},
};
use crate::{
    generate::PromptRows,
    text::{Spelled, TextDelta, TextEndReason, TokenDetail, TokenText, Visibility},
};

/// Most tools, as OpenAI has it.
const TOOLS: usize = 128;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Option<Vec<ChatMessage>>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Value>,
    /// Further variables of the template, as vLLM and llama.cpp name them.
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct ChatMessage {
    role: Role,
    content: Option<OneOrMany<Part>>,
    name: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A tool as the template gets it; its function is checked and otherwise left as it is.
#[derive(Debug, Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: String,
    function: Map<String, Value>,
}

/// Answers a chat.
pub(crate) async fn chat(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let remote = Api::remote(&request);
    let (params, chat) = api.read::<ChatRequest>(request).await?;
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
        prompt_rows: PromptRows::Last,
        client: api.client(remote, params.user.as_deref()),
    };
    let (messages, tools) = (chat.messages()?, chat.tools()?);
    let extra = chat.chat_template_kwargs.unwrap_or_default();
    api.check_ready()?;
    let text = Arc::clone(&api.state.text);
    let encode = move || {
        let options = RenderOptions { tools: &tools, extra, ..RenderOptions::new(SystemTime::now()) };
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
    fn messages(&self) -> Result<Vec<Message>, ApiError> {
        match self.messages.as_deref() {
            None | Some([]) => Err(ApiError::invalid("messages", "'messages' must hold at least one message")),
            Some(messages) => messages.iter().enumerate().map(|(index, message)| message.templated(index)).collect(),
        }
    }

    /// The tools as templates know them.
    fn tools(&self) -> Result<Vec<Value>, ApiError> {
        let tools = self.tools.as_deref().unwrap_or_default();
        if tools.len() > TOOLS {
            return Err(ApiError::invalid("tools", format!("{} tools, want at most {TOOLS}", tools.len())));
        }
        for (index, tool) in tools.iter().enumerate() {
            if tool.kind != "function" {
                return Err(ApiError::invalid(format!("tools[{index}].type"), "only tools of type 'function' exist"));
            }
            if !tool.function.get("name").is_some_and(Value::is_string) {
                return Err(ApiError::invalid(format!("tools[{index}].function.name"), "a function needs a name"));
            }
        }
        if self.tool_choice.as_ref().is_some_and(|choice| choice == "none") {
            return Ok(Vec::new());
        }
        Ok(tools.iter().map(|tool| json!({"type": tool.kind, "function": tool.function})).collect())
    }
}

impl ChatMessage {
    /// Message `index` as templates know it.
    fn templated(&self, index: usize) -> Result<Message, ApiError> {
        let role = match self.role {
            // What OpenAI calls its newer system messages; templates know only the older name.
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        };
        let calls = self.tool_calls.as_ref().filter(|calls| !calls.is_empty());
        let content = match &self.content {
            Some(OneOrMany::One(text)) => Value::from(text.clone()),
            Some(OneOrMany::Many(parts)) => Value::from(joined(index, parts)?),
            None if self.role == Role::Assistant && calls.is_some() => Value::Null,
            None => {
                return Err(ApiError::invalid(format!("messages[{index}].content"), "a message needs a 'content'"));
            }
        };
        let named = |name: &str, text: &Option<String>| text.clone().map(|text| (name.to_owned(), Value::from(text)));
        let calls = calls.map(|calls| ("tool_calls".to_owned(), calls.iter().map(templated_call).collect()));
        let extra = [named("name", &self.name), named("tool_call_id", &self.tool_call_id), calls];
        Ok(Message { role: role.to_owned(), content: Some(content), extra: extra.into_iter().flatten().collect() })
    }
}

/// A tool call as templates know it: OpenAI writes arguments as a text that holds JSON, templates read the JSON itself.
fn templated_call(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(object) = serde_json::from_str::<Map<String, Value>>(text)
    {
        *arguments = Value::Object(object);
    }
    call
}

/// The text of the parts of message `index`, a line each.
fn joined(index: usize, parts: &[Part]) -> Result<String, ApiError> {
    let texts = parts.iter().enumerate().map(|(place, part)| match (part.kind.as_str(), &part.text) {
        ("text", Some(text)) => Ok(text.as_str()),
        ("text", None) => {
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
        assert_eq!(templated_call(&call(json!("{\"a\": [1.5]}"))), call(json!({"a": [1.5]})));
        for as_it_is in [call(json!({"a": 1})), call(json!("[1]")), call(json!("{a")), json!({}), json!(3)] {
            assert_eq!(templated_call(&as_it_is), as_it_is);
        }
    }
}
