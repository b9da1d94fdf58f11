//! What is asked of Anthropic's messages beside the conversation.

use serde::Deserialize;
use serde_json::{Value, json};

use super::conversation::{SentMessage, Texts, transcript};
use crate::{
    api::{
        chat::{Said, Turn, begun_or_asked},
        error::ApiError,
        grammar::Form,
        json::Object,
        unsupported::Kind,
    },
    text::ThoughtsWanted,
};

/// The fields that are not OpenAI's, or mean something else.
#[derive(Debug, Deserialize)]
pub(super) struct MessagesRequest {
    system: Option<Texts>,
    messages: Option<Vec<Object<SentMessage>>>,
    temperature: Option<f64>,
    tools: Option<Vec<Object<Tool>>>,
    tool_choice: Option<Object<Choice>>,
    thinking: Option<Object<Thinking>>,
    output_config: Option<Object<OutputConfig>>,
    metadata: Option<Object<Metadata>>,
    context_management: Option<Object<ContextManagement>>,
    container: Option<Value>,
    mcp_servers: Option<Vec<Value>>,
    output_format: Option<Value>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<Value>,
    description: Option<Value>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// A budget of tokens is a wish that nothing here can keep; it is no part of what is wanted.
#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: Option<String>,
    display: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ContextManagement {
    edits: Option<Vec<Value>>,
}

impl Kind for MessagesRequest {
    const HONOURED: &'static [&'static str] = &["service_tier", "system", "thinking", "tool_choice", "tools"];
}

/// Our names for what is in a tool, and Anthropic's.
const NAMES: [(&str, &str); 3] =
    [(".function.parameters", ".input_schema"), (".function", ""), ("'parameters'", "'input_schema'")];

impl MessagesRequest {
    /// Refuses what we would have to ignore.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let refuse = |param, hint| Err(ApiError::Unsupported { param, hint });
        if self.temperature.is_some_and(|temperature| temperature > 1.0) {
            return Err(ApiError::invalid("temperature", "'temperature' is from 0 to 1"));
        }
        if self.container.as_ref().is_some_and(|container| !container.is_null()) {
            return refuse("container", "nothing is run here");
        }
        if self.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
            return refuse("mcp_servers", "call the servers' tools yourself, and send them in 'tools'");
        }
        if self.logprobs == Some(true) || self.top_logprobs.is_some_and(|top| top > 0) {
            return refuse("logprobs", "only /v1/chat/completions gives them");
        }
        if self.edits().any(|edit| !clears_thoughts(edit)) {
            return refuse("context_management", "shorten the conversation yourself");
        }
        Ok(())
    }

    fn edits(&self) -> impl Iterator<Item = &Value> {
        self.context_management.iter().flat_map(|Object(management)| management.edits.iter().flatten())
    }

    /// How many of the last turns keep their thoughts: all, unless the client says otherwise; then one unless it says how many.
    fn thinking_turns(&self) -> usize {
        let kept = |edit: &Value| match &edit["keep"] {
            Value::Null => 1,
            Value::Object(keep) => keep
                .get("value")
                .and_then(Value::as_u64)
                .map_or(1, |turns| usize::try_from(turns).unwrap_or(usize::MAX)),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => usize::MAX,
        };
        self.edits().filter(|edit| clears_thoughts(edit)).map(kept).min().unwrap_or(usize::MAX)
    }

    /// The form of the answer, by the newer name or the older one.
    pub(super) fn form(&self) -> Result<Option<Form>, ApiError> {
        let format = self.output_config.as_ref().and_then(|Object(config)| config.format.as_ref());
        match format.or(self.output_format.as_ref()) {
            None | Some(Value::Null) => Ok(None),
            Some(format) if format["type"] == "json_schema" && format["schema"].is_object() => {
                Ok(Some(Form::Schema(format["schema"].clone())))
            }
            Some(_) => {
                let text = "'output_config.format' has the 'type' \"json_schema\" and a 'schema'";
                Err(ApiError::invalid("output_config.format", text))
            }
        }
    }

    /// Whom the client asks for.
    pub(super) fn user(&self) -> Option<String> {
        self.metadata.as_ref().and_then(|Object(metadata)| metadata.user_id.clone())
    }

    /// The conversation.
    pub(super) fn turn(self) -> Result<Turn, ApiError> {
        let turns = self.thinking_turns();
        let (thinks, thoughts) = thinking(self.thinking)?;
        let effort = self.output_config.and_then(|Object(config)| config.effort);
        let tools = self.tools.unwrap_or_default().into_iter().enumerate();
        let tools = tools.map(|(place, Object(tool))| tool.described(place)).collect::<Result<_, _>>()?;
        let choice = self.tool_choice.map(|Object(choice)| choice);
        let single = choice.as_ref().is_some_and(|choice| choice.disable_parallel_tool_use == Some(true));
        let messages = transcript(self.system, self.messages, turns)?;
        let said = Said {
            param: "messages",
            ending: begun_or_asked(&messages)?,
            messages,
            tools,
            tool_choice: choice.map(Choice::named).transpose()?,
            parallel_calls: Some(!single),
            thinks,
            effort: effort.map(effort_word).transpose()?,
            thoughts,
        };
        Turn::read(said).map_err(|error| error.renamed(&NAMES))
    }
}

/// Whether an edit of the conversation is one of thoughts.
fn clears_thoughts(edit: &Value) -> bool {
    edit["type"].as_str().is_some_and(|kind| kind.starts_with("clear_thinking"))
}

impl Tool {
    /// The tool as OpenAI describes one.
    fn described(self, place: usize) -> Result<Value, ApiError> {
        if self.kind.as_ref().is_some_and(|kind| kind != "custom") {
            let text = "only tools of the 'type' \"custom\" are supported: the server has none of its own";
            return Err(ApiError::invalid(format!("tools[{place}].type"), text));
        }
        let mut function = json!({"name": self.name, "strict": self.strict});
        if let Some(description) = self.description {
            function["description"] = description;
        }
        if let Some(schema) = self.input_schema {
            function["parameters"] = schema;
        }
        Ok(json!({"type": "function", "function": function}))
    }
}

impl Choice {
    /// The choice as OpenAI names it.
    fn named(self) -> Result<Value, ApiError> {
        match (self.kind.as_deref(), self.name) {
            (Some("auto"), _) => Ok("auto".into()),
            (Some("none"), _) => Ok("none".into()),
            (Some("any"), _) => Ok("required".into()),
            (Some("tool"), Some(name)) => Ok(json!({"type": "function", "function": {"name": name}})),
            (Some("tool"), None) => Err(ApiError::invalid("tool_choice.name", "'tool_choice' needs the tool's 'name'")),
            _ => Err(ApiError::invalid("tool_choice.type", "the 'type' is one of auto, any, tool and none")),
        }
    }
}

/// Whether the model shall think, where that is said, and where its thoughts go.
fn thinking(sent: Option<Object<Thinking>>) -> Result<(Option<bool>, ThoughtsWanted), ApiError> {
    let Some(Object(Thinking { kind, display })) = sent else { return Ok((None, ThoughtsWanted::Apart)) };
    let shown = match display.as_deref() {
        Some("omitted") => ThoughtsWanted::Dropped,
        Some(_) | None => ThoughtsWanted::Apart,
    };
    match kind.as_deref() {
        Some("enabled") => Ok((Some(true), shown)),
        Some("adaptive") => Ok((None, shown)),
        Some("disabled") => Ok((Some(false), ThoughtsWanted::Dropped)),
        _ => Err(ApiError::invalid("thinking.type", "the 'type' is one of enabled, disabled and adaptive")),
    }
}

/// The effort in words that templates know.
fn effort_word(effort: String) -> Result<String, ApiError> {
    match effort.as_str() {
        "low" | "medium" | "high" => Ok(effort),
        "xhigh" | "max" => Ok("high".to_owned()),
        _ => Err(ApiError::invalid("output_config.effort", "'effort' is one of low, medium, high, xhigh and max")),
    }
}
