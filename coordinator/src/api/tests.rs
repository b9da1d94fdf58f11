//! The API against a scripted mesh: through the router where that is enough, through a socket where it is not.

mod answers;
mod anthropic;
mod calls;
mod continuations;
mod embeddings;
mod endings;
mod endpoints;
mod grammars;
mod guards;
mod infill;
mod ollama;
mod openapi;
mod owner;
mod responses;
mod socket;
mod thoughts;
mod validation;

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::{Api, ApiState, guard::Hosts, router, server::Phase};
use crate::{
    generate::{GenerateEvent, GenerateRequest},
    text::fake::{END, FakeMesh, generation, model, word},
};

/// A router over a scripted mesh.
struct Bench {
    mesh: FakeMesh,
    router: Router,
    _phase: watch::Sender<Phase>,
}

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Bench {
    fn new(script: impl Fn(&GenerateRequest) -> Vec<GenerateEvent> + Send + 'static) -> Self {
        Self::with(script, |_| {})
    }

    fn with(
        script: impl Fn(&GenerateRequest) -> Vec<GenerateEvent> + Send + 'static,
        change: impl FnOnce(&mut ApiState),
    ) -> Self {
        let mesh = FakeMesh::new(script);
        let mut state = state(&mesh);
        change(&mut state);
        let (_phase, watched) = watch::channel(Phase::Serving);
        let router = router(Arc::new(Api::new(state, Hosts::Loopback { hosts: vec![], origins: vec![] }, watched)));
        Self { mesh, router, _phase }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("routes do not fail");
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, usize::MAX).await.expect("the body ends");
        let text = String::from_utf8(bytes.into()).expect("text");
        Answer { status: parts.status, headers: parts.headers, text }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Request::get(path).body(Body::empty()).expect("a request")).await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        self.ask(Request::post(path).body(body.into()).expect("a request")).await
    }

    async fn chat(&self, more: Value) -> Answer {
        self.post("/v1/chat/completions", chat_body(more).to_string()).await
    }

    async fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", body.to_string()).await
    }
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The objects of a stream, and whether it ended with `[DONE]`.
    fn events(&self) -> (Vec<Value>, bool) {
        events(&self.text)
    }

    /// Type, code and parameter of an error; the message must say something.
    fn error(&self) -> (StatusCode, String, Option<String>, Option<String>) {
        let error = &self.json()["error"];
        let text = |field: &str| error[field].as_str().map(str::to_owned);
        let mut keys = vec!["message", "type", "param", "code"];
        if error["code"] == "context_length_exceeded" {
            keys.extend(["n_prompt_tokens", "n_ctx"]);
        }
        assert_eq!(error.as_object().map(|error| error.keys().map(String::as_str).collect()), Some(keys));
        assert!(text("message").is_some_and(|message| !message.is_empty()));
        (self.status, text("type").expect("a type"), text("code"), text("param"))
    }
}

fn state(mesh: &FakeMesh) -> ApiState {
    let mut state = ApiState::new(mesh.handle.clone(), Arc::new(model()));
    state.names.push("alias".to_owned());
    state
}

fn chat_body(more: Value) -> Value {
    let mut body = json!({"model": "made-up", "messages": [{"role": "user", "content": "x"}]});
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn events(text: &str) -> (Vec<Value>, bool) {
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = lines.last() == Some(&"[DONE]");
    let objects = lines.iter().filter(|line| **line != "[DONE]");
    (objects.map(|line| serde_json::from_str(line).expect("one object a line")).collect(), done)
}

/// "Hello world", with its end.
fn hello(_: &GenerateRequest) -> Vec<GenerateEvent> {
    generation(&[word("Hello"), word("▁world"), END])
}
