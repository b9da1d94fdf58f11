//! Whose API a path belongs to, which decides what its errors look like.

use axum::{
    Json,
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::error::ApiError;

/// Whose API.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Vendor {
    Anthropic,
    Ollama,
    /// Also those who have taken over OpenAI's errors, and ourselves.
    OpenAi,
}

impl Vendor {
    /// Whose API a path belongs to.
    pub(crate) fn of(path: &str) -> Self {
        match path {
            "/v1/messages" | "/v1/messages/count_tokens" => Self::Anthropic,
            "/api/chat" | "/api/embed" | "/api/embeddings" | "/api/generate" | "/api/ps" | "/api/show"
            | "/api/tags" | "/api/version" => Self::Ollama,
            // There is nothing at these, which is told in words that its clients know.
            "/api/pull" | "/api/push" | "/api/create" | "/api/copy" | "/api/delete" => Self::Ollama,
            _ => Self::OpenAi,
        }
    }

    /// The JSON object of an error.
    pub(crate) fn error(self, error: &ApiError) -> Value {
        match self {
            Self::Anthropic => {
                let kind = match error.kind() {
                    "server_error" => "api_error",
                    "unavailable_error" => "overloaded_error",
                    kind => kind,
                };
                json!({"type": "error", "error": {"type": kind, "message": error.to_string()}})
            }
            Self::Ollama => json!({"error": error.to_string()}),
            Self::OpenAi => error.body(),
        }
    }

    /// A response whose error, if it is one, is worded as the vendor does.
    pub(crate) fn worded(self, response: Response) -> Response {
        let Some(error) = response.extensions().get::<ApiError>() else { return response };
        if self == Self::OpenAi {
            return response;
        }
        let body = Json(self.error(error)).into_response().into_body();
        let (mut head, _) = response.into_parts();
        // It was that of another body.
        head.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(head, body)
    }
}
