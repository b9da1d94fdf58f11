//! Where work on a request is done: where it arrives, or beside the connections.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::task::spawn_blocking;

use super::{error::ApiError, json::Document};

/// Longest body that is worked on where it arrives: to hand it to another thread would take longer than to parse it, and
/// to split it into tokens keeps other connections waiting for less than a step of a model.
const SMALL_BYTES: usize = 4 << 10;
/// Fields that are read in no time. All others may want a grammar parsed, or a vocabulary looked through.
const LIGHT: [&str; 27] = [
    "echo",
    "frequency_penalty",
    "ignore_eos",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_p",
    "model",
    "n",
    "n_predict",
    "presence_penalty",
    "prompt",
    "repeat_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "system",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "typical_p",
    "user",
];

/// How long work may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Effort {
    /// Less than to hand it to another thread.
    Small,
    /// So long that nobody else may wait for it.
    Large,
}

impl Effort {
    /// Of parsing so many bytes, or of splitting them into tokens.
    pub(crate) fn of_bytes(bytes: usize) -> Self {
        if bytes <= SMALL_BYTES { Self::Small } else { Self::Large }
    }

    /// Of reading all that a body asks for, where parsing it takes this.
    pub(crate) fn of_fields(self, body: &Document) -> Self {
        let is_light = body.fields().all(|(name, _)| LIGHT.contains(&name));
        match self {
            Self::Small if is_light => Self::Small,
            Self::Small | Self::Large => Self::Large,
        }
    }

    /// Does work that takes so long.
    ///
    /// # Errors
    /// `Internal`: it panicked.
    pub(crate) async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let done = match self {
            // What the work has taken with it is gone when it panics: nobody sees it half done.
            Self::Small => catch_unwind(AssertUnwindSafe(work)).map_err(|_| "a panic".to_owned()),
            Self::Large => spawn_blocking(work).await.map_err(|error| error.to_string()),
        };
        done.map_err(|error| {
            tracing::error!(%error, "work on a request failed");
            ApiError::Internal { text: "work on this request failed; the server's log says how".to_owned() }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn small_work_is_done_where_it_arrives_and_large_work_elsewhere() {
        let here = thread::current().id();
        assert_eq!(Effort::of_bytes(SMALL_BYTES).run(|| thread::current().id()).await.unwrap(), here);
        assert_ne!(Effort::of_bytes(SMALL_BYTES + 1).run(|| thread::current().id()).await.unwrap(), here);
    }

    #[tokio::test]
    async fn work_that_panics_costs_its_request_only() {
        for effort in [Effort::Small, Effort::Large] {
            let failed = effort.run(|| panic!("a bug")).await;
            assert!(matches!(failed, Err(ApiError::Internal { .. })), "{effort:?}");
        }
    }

    #[test]
    fn whatever_is_not_known_to_be_light_is_large() {
        let effort = |body: serde_json::Value| {
            let body = Document::parse(body.to_string().as_bytes()).unwrap();
            assert_eq!(Effort::Large.of_fields(&body), Effort::Large);
            Effort::Small.of_fields(&body)
        };
        assert_eq!(effort(json!({"prompt": "a", "max_tokens": 1, "temperature": 0, "stream": true})), Effort::Small);
        for heavy in ["grammar", "response_format", "dry_multiplier", "logit_bias", "added_tomorrow"] {
            assert_eq!(effort(json!({"prompt": "a", heavy: null})), Effort::Large, "{heavy}");
        }
    }
}
