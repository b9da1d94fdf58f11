//! What is asked of OpenAI's responses beside the conversation.

use qmesh_models::chat::GenerationPrompt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::items::{SentItem, transcript};
use crate::{
    api::{
        chat::{Said, Turn},
        error::ApiError,
        grammar::Form,
        json::{Object, OneOrMany},
        ranges::integer,
        unsupported::Kind,
    },
    text::ThoughtsWanted,
};

/// The fields that are not those of chats, or mean something else.
#[derive(Debug, Deserialize)]
pub(super) struct ResponsesRequest {
    input: Option<OneOrMany<Object<SentItem>>>,
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    max_output_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    text: Option<Object<TextConfig>>,
    reasoning: Option<Object<Reasoning>>,
    metadata: Option<Value>,
    user: Option<String>,
    previous_response_id: Option<Value>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    background: Option<bool>,
    include: Option<Vec<String>>,
    truncation: Option<String>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct TextConfig {
    format: Option<Value>,
    verbosity: Option<String>,
}

/// A summary is a wish for less than what there is: thoughts come as they are.
#[derive(Debug, Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

impl Kind for ResponsesRequest {
    const HONOURED: &'static [&'static str] = &["max_output_tokens", "reasoning", "tool_choice", "tools"];
}

/// Our names for what is in a tool, and those of responses.
const NAMES: [(&str, &str); 1] = [(".function", "")];

impl ResponsesRequest {
    /// Refuses what we would have to ignore.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let stateless = "nothing is kept here: send the whole conversation in 'input'";
        let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let text = self.text.as_ref().map(|Object(text)| text);
        let verbosity = text.and_then(|text| text.verbosity.as_deref());
        let logprobs = |include: &String| include == "message.output_text.logprobs";
        let table = [
            (given(&self.previous_response_id), "previous_response_id", stateless),
            (given(&self.conversation), "conversation", stateless),
            (given(&self.prompt), "prompt", "send what it says in 'instructions' and 'input'"),
            (self.background == Some(true), "background", "use 'stream'"),
            (self.include.iter().flatten().any(logprobs), "include", "only /v1/chat/completions gives 'logprobs'"),
            (self.logprobs == Some(true), "logprobs", "only /v1/chat/completions gives them"),
            (
                self.top_logprobs.is_some_and(|top| top > 0),
                "top_logprobs",
                "only /v1/chat/completions gives 'logprobs'",
            ),
            (self.truncation.as_deref() == Some("auto"), "truncation", "a prompt is never shortened"),
            (verbosity.is_some_and(|verbosity| verbosity != "medium"), "text.verbosity", "ask for it in the prompt"),
        ];
        match table.into_iter().find(|(wrong, ..)| *wrong) {
            Some((_, param, hint)) => Err(ApiError::Unsupported { param, hint }),
            None => Ok(()),
        }
    }

    /// The form of the answer.
    pub(super) fn form(&self) -> Result<Option<Form>, ApiError> {
        let Some(format) = self.format() else { return Ok(None) };
        match format["type"].as_str() {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(Form::Object)),
            Some("json_schema") if format["schema"].is_object() => Ok(Some(Form::Schema(format["schema"].clone()))),
            Some("json_schema") => Err(ApiError::invalid("text.format.schema", "'text.format' needs its 'schema'")),
            Some(_) | None => {
                let text = "the 'type' of 'text.format' is one of text, json_object and json_schema";
                Err(ApiError::invalid("text.format.type", text))
            }
        }
    }

    fn format(&self) -> Option<&Value> {
        let Object(text) = self.text.as_ref()?;
        text.format.as_ref().filter(|format| !format.is_null())
    }

    /// The most tokens to generate, if that is said.
    pub(super) fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let tokens = integer("max_output_tokens", self.max_output_tokens, 1..=i64::MAX)?;
        Ok(tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
    }

    /// The response as far as it repeats what was asked.
    pub(super) fn echoed(&self, model: &str, created_s: u64) -> Value {
        let effort = self.reasoning.as_ref().and_then(|Object(reasoning)| reasoning.effort.as_ref());
        let format = self.format().cloned().unwrap_or_else(|| json!({"type": "text"}));
        json!({
            "id": null,
            "object": "response",
            "created_at": created_s,
            "status": "in_progress",
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "model": model,
            "output": [],
            "parallel_tool_calls": self.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": null,
            "reasoning": {"effort": effort, "summary": null},
            "service_tier": "default",
            "store": false,
            "temperature": self.temperature.unwrap_or(1.0),
            "text": {"format": format},
            "tool_choice": self.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "tools": self.tools.as_deref().unwrap_or_default(),
            "top_p": self.top_p.unwrap_or(1.0),
            "truncation": "disabled",
            "usage": null,
            "user": self.user,
            "metadata": self.metadata.clone().unwrap_or_else(|| Map::new().into()),
        })
    }

    /// The conversation.
    pub(super) fn turn(self) -> Result<Turn, ApiError> {
        let tools = self.tools.unwrap_or_default().into_iter().enumerate();
        let said = Said {
            param: "input",
            messages: transcript(self.instructions, self.input)?,
            tools: tools.map(|(place, tool)| described(place, tool)).collect::<Result<_, _>>()?,
            tool_choice: self.tool_choice.map(named),
            parallel_calls: self.parallel_tool_calls,
            thinks: None,
            effort: effort(self.reasoning)?,
            thoughts: ThoughtsWanted::Apart,
            ending: GenerationPrompt::Add,
        };
        Turn::read(said).map_err(|error| error.renamed(&NAMES))
    }
}

/// A tool as chats have it.
fn described(place: usize, mut tool: Value) -> Result<Value, ApiError> {
    let fields = tool.as_object_mut().filter(|fields| fields.get("type").is_some_and(|kind| kind == "function"));
    let Some(fields) = fields else {
        let text = "only tools of the 'type' \"function\" are supported: the server has none of its own";
        return Err(ApiError::invalid(format!("tools[{place}].type"), text));
    };
    fields.retain(|name, _| ["name", "description", "parameters", "strict"].contains(&name.as_str()));
    Ok(json!({"type": "function", "function": tool}))
}

/// A choice among tools as chats have it.
fn named(choice: Value) -> Value {
    match choice.get("name") {
        Some(name) => json!({"type": choice["type"], "function": {"name": name}}),
        None => choice,
    }
}

/// The effort in words that templates know.
fn effort(reasoning: Option<Object<Reasoning>>) -> Result<Option<String>, ApiError> {
    let Some(effort) = reasoning.and_then(|Object(reasoning)| reasoning.effort) else { return Ok(None) };
    match effort.as_str() {
        "none" | "minimal" | "low" | "medium" | "high" => Ok(Some(effort)),
        "xhigh" => Ok(Some("high".to_owned())),
        _ => {
            let text = "'effort' is one of none, minimal, low, medium, high and xhigh";
            Err(ApiError::invalid("reasoning.effort", text))
        }
    }
}
