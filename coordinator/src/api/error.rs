//! The shape in which the API reports errors: OpenAI's, with its types and codes. `vendor` words them for other APIs.

use std::fmt;

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use qmesh_models::chat::TemplateError;
use serde_json::{Value, json};
use thiserror::Error;

use super::{
    limits::{BODY_BYTES, BODY_DEADLINE, MOST_BYTES},
    places::Crowd,
};
use crate::{generate::GenerateError, mesh::status::MeshState, text::PromptError};

/// Why a request gets no answer. The text goes to the client as it is, so it holds no more of the prompt than a word.
#[derive(Clone, Debug, Error)]
pub(crate) enum ApiError {
    /// A parameter, or the body as a whole, is wrong.
    #[error("{text}")]
    Invalid { param: Option<String>, text: String },
    /// A parameter that we know and do not honour.
    #[error("'{param}' is not supported yet: {hint}")]
    Unsupported { param: &'static str, hint: &'static str },
    /// The prompt does not fit the context.
    // Clients look for the first words, and those of llama-server for what it exceeds.
    #[error(
        "This model's maximum context length is {context} tokens, the prompt has {prompt_tokens}, which exceeds the \
         available context size: shorten it, or serve with a larger --ctx-size"
    )]
    ContextExceeded { param: &'static str, prompt_tokens: PromptTokens, context: usize },
    #[error("missing or wrong API key: send 'Authorization: Bearer KEY'")]
    Unauthorized,
    #[error("{header} '{value}' is not this machine: use localhost or a loopback address")]
    Forbidden { header: HeaderName, value: String },
    #[error("no such endpoint: GET / lists them")]
    NoSuchEndpoint,
    #[error("request {request} neither runs nor waits")]
    NoSuchRequest { request: u64 },
    #[error(
        "only whoever runs the coordinator decides about workers: `coordinator admit` and `coordinator workers` on its \
         machine, or the page by the link that `serve --open` prints"
    )]
    NotOwner,
    #[error("{text}")]
    NoSuchWorker { text: String },
    /// Several workers are meant, or it is so already.
    #[error("{text}")]
    UnclearWorker { text: String },
    #[error("this endpoint does not take that method: GET / lists them")]
    WrongMethod,
    #[error("the model '{name}' is not served here; GET /v1/models names the one that is")]
    UnknownModel { name: String },
    #[error("the body did not arrive within {} s", BODY_DEADLINE.as_secs())]
    Slow,
    #[error("the body is larger than {BODY_BYTES} bytes")]
    TooLarge,
    #[error("the request would take more than {} MiB of memory to read: send less in it", MOST_BYTES >> 20)]
    TooHeavy,
    #[error("too many large requests are being read: try again later")]
    Busy,
    #[error("{}", crowd_text(*.0))]
    Crowded(Crowd),
    /// The mesh cannot compute now.
    #[error("{text}")]
    NotReady { state: MeshState, text: String },
    /// The mesh took the request and failed it.
    #[error(transparent)]
    Generate(GenerateError),
    #[error("internal error: {text}")]
    Internal { text: String },
}

/// How long a prompt is, as far as it was looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PromptTokens {
    Exactly(usize),
    AtLeast(usize),
}

/// How an error is told apart by programs.
struct Class {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    retry_after_s: Option<u16>,
}

impl ApiError {
    /// A wrong parameter.
    pub(crate) fn invalid(param: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), text: text.into() }
    }

    /// A prompt that could not become ids.
    pub(crate) fn text(param: &'static str, error: &PromptError) -> Self {
        match error {
            PromptError::Template(TemplateError::Thread(_)) => Self::Internal { text: error.to_string() },
            PromptError::TooLong { least, context } => {
                Self::ContextExceeded { param, prompt_tokens: PromptTokens::AtLeast(*least), context: *context }
            }
            PromptError::Empty { .. }
            | PromptError::Noncharacters
            | PromptError::NoInfill { .. }
            | PromptError::NoTemplate { .. }
            | PromptError::NoTools { .. }
            | PromptError::Template(_)
            | PromptError::Tokenizer(_) => Self::invalid(param, error.to_string()),
        }
    }

    /// The JSON object of the error; also what a failed stream ends with.
    pub(crate) fn body(&self) -> Value {
        let Class { kind, code, .. } = self.class();
        let mut error = json!({"message": self.to_string(), "type": kind, "param": self.param(), "code": code});
        if let Some((prompt_tokens, context)) = self.exceeded() {
            // llama-server's names, by which its clients shorten a conversation.
            (error["n_prompt_tokens"], error["n_ctx"]) = (prompt_tokens.into(), context.into());
        }
        json!({ "error": error })
    }

    /// The tokens of a prompt, as far as they were counted, and of the context that it does not fit.
    fn exceeded(&self) -> Option<(usize, usize)> {
        if let Self::ContextExceeded { prompt_tokens, context, .. } = self {
            let (PromptTokens::Exactly(tokens) | PromptTokens::AtLeast(tokens)) = *prompt_tokens;
            Some((tokens, *context))
        } else if let Self::Generate(GenerateError::ContextExceeded { prompt_tokens, context }) = self {
            Some((*prompt_tokens, *context))
        } else {
            None
        }
    }

    /// Its kind, in OpenAI's words.
    pub(crate) fn kind(&self) -> &'static str {
        self.class().kind
    }

    /// The same error, where a dialect has other names for what was wrong: the first of each pair is ours.
    pub(crate) fn renamed(self, names: &[(&str, &str)]) -> Self {
        let other = |text: String| names.iter().fold(text, |text, (ours, theirs)| text.replace(ours, theirs));
        let Self::Invalid { param, text } = self else { return self };
        Self::Invalid { param: param.map(other), text: other(text) }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::Unsupported { param, .. } => Some(param),
            Self::ContextExceeded { param, .. } => Some(param),
            Self::UnknownModel { .. } => Some("model"),
            Self::Unauthorized
            | Self::Forbidden { .. }
            | Self::NoSuchEndpoint
            | Self::NoSuchRequest { .. }
            | Self::NotOwner
            | Self::NoSuchWorker { .. }
            | Self::UnclearWorker { .. }
            | Self::WrongMethod
            | Self::Slow
            | Self::TooLarge
            | Self::TooHeavy
            | Self::Busy
            | Self::Crowded(_)
            | Self::NotReady { .. }
            | Self::Generate(_)
            | Self::Internal { .. } => None,
        }
    }

    fn class(&self) -> Class {
        let class = |status, kind| Class { status, kind, code: None, retry_after_s: None };
        match self {
            Self::Invalid { .. } => class(StatusCode::BAD_REQUEST, "invalid_request_error"),
            Self::Unsupported { .. } => {
                class(StatusCode::BAD_REQUEST, "invalid_request_error").code("unsupported_parameter")
            }
            Self::ContextExceeded { .. } => {
                class(StatusCode::BAD_REQUEST, "invalid_request_error").code("context_length_exceeded")
            }
            Self::Unauthorized => class(StatusCode::UNAUTHORIZED, "authentication_error"),
            Self::Forbidden { .. } | Self::NotOwner => class(StatusCode::FORBIDDEN, "permission_error"),
            Self::NoSuchEndpoint | Self::NoSuchRequest { .. } | Self::NoSuchWorker { .. } => {
                class(StatusCode::NOT_FOUND, "not_found_error")
            }
            Self::UnclearWorker { .. } => class(StatusCode::CONFLICT, "invalid_request_error"),
            Self::WrongMethod => class(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error"),
            Self::UnknownModel { .. } => class(StatusCode::NOT_FOUND, "not_found_error").code("model_not_found"),
            Self::Slow => class(StatusCode::REQUEST_TIMEOUT, "timeout_error"),
            Self::TooLarge | Self::TooHeavy => class(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large"),
            Self::Busy => class(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error").code("queue_full").retry(2),
            Self::Crowded(Crowd::Address) => {
                class(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error").code("too_many_connections").retry(2)
            }
            Self::Crowded(Crowd::Everybody) => unavailable("too_many_connections"),
            Self::NotReady { state, .. } => unavailable(state_code(*state)),
            Self::Generate(error) => generate_class(error),
            Self::Internal { .. } => class(StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        }
    }
}

impl fmt::Display for PromptTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(tokens) => write!(f, "{tokens}"),
            Self::AtLeast(tokens) => write!(f, "at least {tokens}"),
        }
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        Self::Generate(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Class { status, retry_after_s, .. } = self.class();
        let mut response = (status, Json(self.body())).into_response();
        if let Some(seconds) = retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self, Self::Crowded(_)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // Whoever knows whose API was asked words it anew.
        response.extensions_mut().insert(self);
        response
    }
}

impl Class {
    fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    fn retry(self, seconds: u16) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

fn crowd_text(crowd: Crowd) -> &'static str {
    match crowd {
        Crowd::Address => {
            "too many connections or requests from this address: use fewer at a time, or have the server started with \
             --trusted-proxy if a proxy stands before many clients"
        }
        Crowd::Everybody => "too many connections: try again later",
    }
}

fn unavailable(code: &'static str) -> Class {
    Class {
        status: StatusCode::SERVICE_UNAVAILABLE,
        kind: "unavailable_error",
        code: Some(code),
        retry_after_s: Some(5),
    }
}

fn state_code(state: MeshState) -> &'static str {
    match state {
        MeshState::Loading => "loading",
        MeshState::Waiting | MeshState::Ready | MeshState::Failed => "no_pipeline",
        MeshState::Stopping => "shutting_down",
    }
}

fn generate_class(error: &GenerateError) -> Class {
    let class = |status, kind, code| Class { status, kind, code, retry_after_s: None };
    match error {
        GenerateError::ContextExceeded { .. } => {
            class(StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"))
        }
        GenerateError::BadPrompt { .. } => class(StatusCode::BAD_REQUEST, "invalid_request_error", None),
        GenerateError::QueueFull { .. } => {
            class(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full")).retry(2)
        }
        GenerateError::NotReady { .. } => unavailable("no_pipeline"),
        GenerateError::WorkerLost { .. } => unavailable("worker_lost"),
        GenerateError::Fault { .. } => {
            class(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("pipeline_failed"))
        }
        GenerateError::Cancelled => class(StatusCode::GONE, "server_error", Some("cancelled")),
        GenerateError::Grammar(_) => class(StatusCode::BAD_REQUEST, "invalid_request_error", Some("grammar_failed")),
        GenerateError::ShuttingDown => unavailable("shutting_down"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::GrammarError;

    #[test]
    fn a_prompt_that_is_too_long_says_by_how_much() {
        let counted = |error: ApiError| {
            let body = error.body();
            (body["error"]["n_prompt_tokens"].as_u64(), body["error"]["n_ctx"].as_u64())
        };
        let counts = [PromptTokens::Exactly(70), PromptTokens::AtLeast(70)];
        for prompt_tokens in counts {
            let error = ApiError::ContextExceeded { param: "prompt", prompt_tokens, context: 64 };
            assert_eq!(counted(error), (Some(70), Some(64)));
        }
        let late = GenerateError::ContextExceeded { prompt_tokens: 65, context: 64 };
        assert_eq!(counted(late.into()), (Some(65), Some(64)));
        assert_eq!(counted(ApiError::Busy), (None, None));
    }

    #[test]
    fn whoever_may_come_again_is_told_when() {
        let text = || "worker-2 is gone".to_owned();
        let states = [MeshState::Waiting, MeshState::Loading, MeshState::Ready, MeshState::Failed, MeshState::Stopping];
        let not_ready = states.map(|state| ApiError::NotReady { state, text: text() });
        let generate = [
            GenerateError::ContextExceeded { prompt_tokens: 2, context: 1 },
            GenerateError::BadPrompt { text: text() },
            GenerateError::QueueFull { waiting: 3 },
            GenerateError::NotReady { text: text() },
            GenerateError::WorkerLost { text: text() },
            GenerateError::Fault { text: text() },
            GenerateError::Cancelled,
            GenerateError::Grammar(GrammarError::Lost { text: text() }),
            GenerateError::ShuttingDown,
        ];
        let others = [
            ApiError::invalid("n", "'n' is 0"),
            ApiError::Unauthorized,
            ApiError::NoSuchEndpoint,
            ApiError::NoSuchRequest { request: 3 },
            ApiError::WrongMethod,
            ApiError::Slow,
            ApiError::TooLarge,
            ApiError::TooHeavy,
            ApiError::Busy,
            ApiError::Crowded(Crowd::Address),
            ApiError::Crowded(Crowd::Everybody),
            ApiError::Internal { text: text() },
        ];
        for error in others.into_iter().chain(not_ready).chain(generate.map(ApiError::from)) {
            let (said, response) = (error.to_string(), error.into_response());
            let later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&response.status());
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), later, "{said}");
            assert!(!said.contains("{ ") && !said.contains("(\""), "{said} shows a type");
        }
    }
}
