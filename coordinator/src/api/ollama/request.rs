//! What is asked of Ollama's chats and generations.

use std::collections::VecDeque;

use qmesh_models::chat::{GenerationPrompt, Message};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    api::{
        Api,
        chat::{Said, Transcript, begun_or_asked},
        error::ApiError,
        grammar::{AskedGrammar, Form},
        json::Object,
        params::Delivery,
        unsupported::Kind,
    },
    text::ThoughtsWanted,
};

/// What both kinds of requests have.
#[derive(Debug, Deserialize)]
pub(super) struct Shared {
    model: Option<String>,
    stream: Option<bool>,
    options: Option<Map<String, Value>>,
    think: Option<Value>,
    format: Option<Value>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    /// What has its place in the options.
    max_tokens: Option<Value>,
    num_ctx: Option<Value>,
    num_predict: Option<Value>,
    seed: Option<Value>,
    stop: Option<Value>,
    temperature: Option<Value>,
    top_k: Option<Value>,
    top_p: Option<Value>,
    /// What other servers' parameters ask of the text, which are read by themselves.
    #[serde(skip)]
    pub(super) grammar: Option<AskedGrammar>,
}

/// A conversation.
#[derive(Debug, Deserialize)]
pub(super) struct ChatRequest {
    messages: Option<Vec<Object<SentMessage>>>,
    tools: Option<Vec<Value>>,
    /// Not Ollama's, but sent to it.
    tool_choice: Option<Value>,
}

/// A prompt.
#[derive(Debug, Deserialize)]
pub(super) struct GenerateRequest {
    prompt: Option<String>,
    system: Option<String>,
    raw: Option<bool>,
    suffix: Option<String>,
    images: Option<Vec<Value>>,
    template: Option<String>,
    context: Option<Vec<Value>>,
}

impl Kind for ChatRequest {
    const HONOURED: &'static [&'static str] =
        &["format", "num_ctx", "num_predict", "options", "think", "tool_choice", "tools"];
}

impl Kind for GenerateRequest {
    // Some of these are refused with a hint that fits better.
    const HONOURED: &'static [&'static str] = &[
        "context",
        "format",
        "images",
        "num_ctx",
        "num_predict",
        "options",
        "raw",
        "suffix",
        "system",
        "template",
        "think",
    ];
}

#[derive(Debug, Deserialize)]
struct SentMessage {
    role: Option<String>,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<Object<SentCall>>>,
    tool_call_id: Option<String>,
    #[serde(alias = "name")]
    tool_name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct SentCall {
    id: Option<String>,
    function: Option<Object<SentFunction>>,
}

#[derive(Debug, Deserialize)]
struct SentFunction {
    name: Option<String>,
    arguments: Option<Map<String, Value>>,
}

/// So many calls are looked at for the one that a result belongs to.
const PENDING: usize = 128;

const OPTIONS: &str = "send it in 'options'";

/// What is said about thoughts.
#[derive(Debug)]
pub(super) struct Thinking {
    thinks: Option<bool>,
    effort: Option<String>,
    thoughts: ThoughtsWanted,
}

impl Shared {
    /// Refuses what we would have to ignore.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.logprobs == Some(true) || self.top_logprobs.is_some_and(|top| top > 0) {
            return Err(ApiError::Unsupported { param: "logprobs", hint: "use /v1/chat/completions" });
        }
        let misplaced = [
            ("max_tokens", &self.max_tokens, "send 'num_predict' in 'options'"),
            ("num_ctx", &self.num_ctx, OPTIONS),
            ("num_predict", &self.num_predict, OPTIONS),
            ("seed", &self.seed, OPTIONS),
            ("stop", &self.stop, OPTIONS),
            ("temperature", &self.temperature, OPTIONS),
            ("top_k", &self.top_k, OPTIONS),
            ("top_p", &self.top_p, OPTIONS),
        ];
        match misplaced.into_iter().find(|(_, sent, _)| sent.as_ref().is_some_and(|sent| !sent.is_null())) {
            Some((param, _, hint)) => Err(ApiError::Unsupported { param, hint }),
            None => Ok(()),
        }
    }

    /// The form of the answer.
    pub(super) fn form(&self) -> Result<Option<Form>, ApiError> {
        match &self.format {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(format)) if format.is_empty() => Ok(None),
            Some(Value::String(format)) if format == "json" => Ok(Some(Form::Object)),
            Some(schema @ Value::Object(_)) => Ok(Some(Form::Schema(schema.clone()))),
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                Err(ApiError::invalid("format", "'format' is \"json\" or a JSON schema"))
            }
        }
    }

    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// The name by which the client asked, which its answer repeats.
    pub(super) fn model_name(&self, api: &Api) -> String {
        self.model.clone().unwrap_or_else(|| api.state.text.name.clone())
    }

    pub(super) fn options(&self) -> Map<String, Value> {
        self.options.clone().unwrap_or_default()
    }

    /// How the answer comes: as a stream, unless the client says otherwise.
    pub(super) fn delivery(&self) -> Delivery {
        if self.stream.unwrap_or(true) { Delivery::Stream } else { Delivery::Whole }
    }

    /// What is said about thoughts: a yes, a no, or how much of them.
    pub(super) fn thinking(&self) -> Result<Thinking, ApiError> {
        let thinking = |thinks, effort: Option<&str>, thoughts| {
            Ok(Thinking { thinks, effort: effort.map(str::to_owned), thoughts })
        };
        match &self.think {
            None | Some(Value::Null) => thinking(None, None, ThoughtsWanted::Apart),
            Some(Value::Bool(true)) => thinking(Some(true), None, ThoughtsWanted::Apart),
            Some(Value::Bool(false)) => thinking(Some(false), None, ThoughtsWanted::Dropped),
            Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => {
                thinking(Some(true), Some(effort), ThoughtsWanted::Apart)
            }
            Some(_) => Err(ApiError::invalid("think", "'think' is true, false, low, medium or high")),
        }
    }
}

impl ChatRequest {
    /// Whether it asks for nothing but the model to be there.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.as_ref().is_none_or(Vec::is_empty)
    }

    /// The conversation.
    pub(super) fn said(self, thinking: Thinking) -> Result<Said, ApiError> {
        let mut told = Told::default();
        for (index, Object(message)) in self.messages.unwrap_or_default().into_iter().enumerate() {
            message.tell(&mut told, &format!("messages[{index}]"))?;
        }
        let (messages, tools) = (told.transcript.into_messages(), self.tools.unwrap_or_default());
        let ending = begun_or_asked(&messages)?;
        Ok(Said { tool_choice: self.tool_choice, ending, ..said("messages", messages, tools, thinking) })
    }
}

impl GenerateRequest {
    /// Refuses what we would have to ignore.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        let refuse = |param, hint| Err(ApiError::Unsupported { param, hint });
        let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if text(&self.template) {
            return refuse("template", "the model's own is used; render the prompt yourself, and send it with 'raw'");
        }
        if self.images.as_ref().is_some_and(|images| !images.is_empty()) {
            return refuse("images", "only text is read");
        }
        if self.context.as_ref().is_some_and(|context| !context.is_empty()) {
            return refuse("context", "send the conversation to /api/chat");
        }
        if self.is_raw() && text(&self.system) {
            return refuse("system", "with 'raw' the prompt is all that there is");
        }
        Ok(())
    }

    /// What is to be answered, if anything.
    pub(super) fn prompt(&self) -> Option<String> {
        self.prompt.clone().filter(|prompt| !prompt.is_empty())
    }

    /// What comes after the answer, if anything.
    pub(super) fn suffix(&self) -> Option<String> {
        self.suffix.clone().filter(|suffix| !suffix.is_empty())
    }

    /// Whether the prompt goes on as it is.
    pub(super) fn is_raw(&self) -> bool {
        self.raw.unwrap_or(false)
    }

    /// The prompt as a conversation.
    pub(super) fn said(self, prompt: String, thinking: Thinking) -> Said {
        let mut transcript = Transcript::default();
        if let Some(system) = self.system.filter(|system| !system.is_empty()) {
            transcript.say("system", system);
        }
        transcript.say("user", prompt);
        said("prompt", transcript.into_messages(), Vec::new(), thinking)
    }
}

/// What has been said so far, with the ids and names of calls that have no result yet.
#[derive(Debug, Default)]
struct Told {
    transcript: Transcript,
    pending: VecDeque<(String, String)>,
    calls: usize,
}

impl SentMessage {
    fn tell(self, told: &mut Told, place: &str) -> Result<(), ApiError> {
        if self.images.as_ref().is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::invalid(format!("{place}.images"), "'images' are not supported: only text is read"));
        }
        let text = self.content.unwrap_or_default();
        match self.role.as_deref() {
            Some(role @ ("system" | "user")) => told.transcript.say(role, text),
            Some("assistant") => {
                let calls = self.tool_calls.unwrap_or_default();
                told.transcript.think(&self.thinking.unwrap_or_default());
                if calls.is_empty() || !text.is_empty() {
                    told.transcript.say("assistant", text);
                }
                for (number, Object(call)) in calls.into_iter().enumerate() {
                    told.call(call, &format!("{place}.tool_calls[{number}]"))?;
                }
            }
            Some("tool") => told.result(self.tool_call_id, self.tool_name.as_deref(), text),
            Some(_) | None => {
                let text = "the 'role' of a message is one of system, user, assistant and tool";
                return Err(ApiError::invalid(format!("{place}.role"), text));
            }
        }
        Ok(())
    }
}

impl Told {
    fn call(&mut self, call: SentCall, place: &str) -> Result<(), ApiError> {
        let Some(SentFunction { name: Some(name), arguments }) = call.function.map(|Object(function)| function) else {
            return Err(ApiError::invalid(format!("{place}.function.name"), "a call needs the 'name' of a function"));
        };
        let id = call.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call_{}", self.calls));
        self.calls += 1;
        self.transcript.call(&id, &name, arguments.unwrap_or_default().into());
        self.pending.push_back((id, name));
        Ok(())
    }

    /// A result that does not say of which call it is belongs to the first one, of that tool if it names one.
    fn result(&mut self, id: Option<String>, name: Option<&str>, text: String) {
        let id = id.filter(|id| !id.is_empty());
        let place = self.pending.iter().take(PENDING).position(|(pending, tool)| match (&id, name) {
            (Some(id), _) => pending == id,
            (None, Some(name)) => tool == name,
            (None, None) => true,
        });
        let pending = self.pending.remove(place.unwrap_or(0)).map(|(pending, _)| pending);
        self.transcript.result(&id.or(pending).unwrap_or_default(), text);
    }
}

fn said(param: &'static str, messages: Vec<Message>, tools: Vec<Value>, thinking: Thinking) -> Said {
    let Thinking { thinks, effort, thoughts } = thinking;
    let ending = GenerationPrompt::Add;
    Said { param, messages, tools, tool_choice: None, parallel_calls: None, thinks, effort, thoughts, ending }
}
