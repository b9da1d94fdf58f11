//! `GET /openapi.json`: every route, for programs that read such a description.

use std::sync::LazyLock;

use axum::Json;
use serde_json::{Map, Value, json};

use super::{owner::OWNER_KEY, vendor::Vendor};

/// What is done at a path, and what is sent there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) what: &'static str,
    /// The schema of the body, by its name in `requests.json`; none where nothing is sent.
    body: Option<&'static str>,
    answer: Answer,
}

/// In what form an answer comes, and its schema, by its name in `answers.json`.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Json(&'static str),
    /// JSON, or events where a stream is asked for.
    JsonOrEvents(&'static str),
    /// JSON, or a line of JSON for each part where a stream is asked for.
    JsonOrLines(&'static str),
    Events,
    Text,
    /// A page, or text, as the client accepts.
    Page,
}

use Answer::{Events, Json as AsJson, JsonOrEvents, JsonOrLines, Page, Text};

/// All of them, those that people look for first.
pub(crate) static OPERATIONS: [Operation; 52] = [
    get("/", "the pipeline as a page, for browsers; for others this list", Page),
    post(
        "/v1/chat/completions",
        "OpenAI chat completions, streamed or whole",
        "ChatRequest",
        JsonOrEvents("ChatCompletion"),
    ),
    post("/chat/completions", "the same", "ChatRequest", JsonOrEvents("ChatCompletion")),
    post(
        "/v1/chat/completions/input_tokens",
        "how long the prompt is that a chat becomes",
        "ChatRequest",
        AsJson("ChatTokens"),
    ),
    post("/chat/completions/input_tokens", "the same", "ChatRequest", AsJson("ChatTokens")),
    post("/v1/completions", "OpenAI completions, streamed or whole", "CompletionRequest", JsonOrEvents("Completion")),
    post("/completions", "the same", "CompletionRequest", JsonOrEvents("Completion")),
    post("/v1/embeddings", "texts as vectors, as OpenAI has them", "EmbeddingRequest", AsJson("Embeddings")),
    post("/embeddings", "the same", "EmbeddingRequest", AsJson("Embeddings")),
    post("/embedding", "the same, as llama-server has them", "LlamaEmbeddingRequest", AsJson("LlamaVectors")),
    post("/v1/responses", "OpenAI responses, which remember nothing", "ResponseRequest", JsonOrEvents("Response")),
    post("/responses", "the same", "ResponseRequest", JsonOrEvents("Response")),
    post("/v1/responses/input_tokens", "how long such a conversation is", "ResponseRequest", AsJson("ChatTokens")),
    post("/responses/input_tokens", "the same", "ResponseRequest", AsJson("ChatTokens")),
    post("/v1/messages", "Anthropic messages, streamed or whole", "MessageRequest", JsonOrEvents("Message")),
    post("/v1/messages/count_tokens", "how long such a conversation is", "MessageRequest", AsJson("MessageTokens")),
    post("/api/chat", "Ollama chats, streamed or whole", "OllamaChatRequest", JsonOrLines("OllamaChatAnswer")),
    post(
        "/api/generate",
        "Ollama generations, streamed or whole",
        "OllamaGenerateRequest",
        JsonOrLines("OllamaGenerateAnswer"),
    ),
    post("/api/embed", "texts as vectors, as Ollama has them", "OllamaEmbedRequest", AsJson("OllamaVectors")),
    post("/api/embeddings", "the older way to ask for one", "OllamaEmbeddingRequest", AsJson("OllamaVector")),
    get("/api/tags", "the model, as Ollama lists it", AsJson("OllamaModels")),
    get("/api/ps", "the same, once it can answer", AsJson("OllamaModels")),
    post("/api/show", "more about it", "OllamaShowRequest", AsJson("OllamaModel")),
    get("/api/version", "the version of Ollama that is spoken", AsJson("OllamaVersion")),
    get("/v1/models", "the model served", AsJson("Models")),
    get("/models", "the same", AsJson("Models")),
    get("/v1/models/{id}", "the same, by name", AsJson("Model")),
    get("/models/{id}", "the same", AsJson("Model")),
    get("/health", "200 while this process answers", AsJson("Health")),
    get("/v1/health", "the same", AsJson("Health")),
    get("/healthz", "the same", AsJson("Health")),
    get("/ping", "the same", AsJson("Health")),
    get("/ready", "200 while tokens can flow", AsJson("Ready")),
    get("/readyz", "the same", AsJson("Ready")),
    get("/version", "the version of this program, as vLLM says it", AsJson("Version")),
    get("/api/status", "the mesh as JSON: state, stages, workers", AsJson("Status")),
    get("/api/events", "the same as server-sent events, on every change; what happens as named ones", Events),
    post_nothing("/api/requests/{number}/cancel", "ends a request, by the number that events give it", "Cancelled"),
    get(
        "/api/workers",
        "for the owner: who asks to join, who is here, whose keys are remembered",
        AsJson("WorkerList"),
    ),
    post_nothing("/api/workers/{who}/admit", "for the owner: lets a worker in that asks, by code or name", "Decided"),
    post_nothing("/api/workers/{who}/refuse", "for the owner: sends such a worker away", "Decided"),
    post_nothing("/api/workers/{who}/revoke", "for the owner: takes a worker's right away, by name or key", "Decided"),
    post_nothing("/api/workers/{who}/forget", "for the owner: lets a revoked worker ask again", "Decided"),
    post(
        "/completion",
        "texts that go on, as llama-server continues them",
        "ContinuationRequest",
        JsonOrEvents("Continuations"),
    ),
    post(
        "/infill",
        "the middle of a text, as editors ask llama-server for it",
        "InfillRequest",
        JsonOrEvents("Continuations"),
    ),
    post(
        "/apply-template",
        "the prompt that a chat becomes, as llama-server shows it",
        "ChatRequest",
        AsJson("Prompt"),
    ),
    post("/tokenize", "the token ids of a text or a conversation", "TokenizeRequest", AsJson("Tokens")),
    post("/detokenize", "the text of token ids", "DetokenizeRequest", AsJson("Text")),
    get("/props", "the model's context and special tokens, as llama-server says them", AsJson("Props")),
    get("/slots", "what runs, as llama-server lists it", AsJson("Slots")),
    get("/metrics", "for Prometheus, under names of our own, vLLM's and llama-server's", Text),
    get("/openapi.json", "this list as an OpenAPI document", AsJson("OpenApi")),
];

static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

/// The description.
pub(crate) async fn openapi() -> Json<Value> {
    Json(DOCUMENT.clone())
}

const fn get(path: &'static str, what: &'static str, answer: Answer) -> Operation {
    Operation { method: "get", path, what, body: None, answer }
}

const fn post(path: &'static str, what: &'static str, body: &'static str, answer: Answer) -> Operation {
    Operation { method: "post", path, what, body: Some(body), answer }
}

const fn post_nothing(path: &'static str, what: &'static str, answer: &'static str) -> Operation {
    Operation { method: "post", path, what, body: None, answer: AsJson(answer) }
}

fn document() -> Value {
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.described();
    }
    let mut schemas = Map::new();
    for file in [include_str!("openapi/requests.json"), include_str!("openapi/answers.json")] {
        // They are part of the program, and tests look whether what is referred to is there.
        schemas.extend(serde_json::from_str::<Map<_, _>>(file).unwrap_or_default());
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "qmesh",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A model on several machines, by the APIs of OpenAI, Anthropic, Ollama and llama.cpp.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "owner": {"type": "apiKey", "in": "header", "name": OWNER_KEY.as_str()},
            },
        },
        // Where the server has a key; what is for the owner wants the owner's.
        "security": [{}, {"bearer": []}, {"header": []}, {"owner": []}],
    })
}

impl Operation {
    fn described(&self) -> Value {
        let words = self.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let id = [self.method].into_iter().chain(words).collect::<Vec<_>>().join("_");
        let error = match Vendor::of(self.path) {
            Vendor::Anthropic => "AnthropicError",
            Vendor::Ollama => "OllamaError",
            Vendor::OpenAi => "OpenAiError",
        };
        let mut operation = json!({
            "operationId": id,
            "summary": self.what,
            "responses": {
                "200": {"description": "the answer", "content": self.answer.content()},
                "default": {"description": "an error, in the words of whose API the path is", "content": {"application/json": schema(error)}},
            },
        });
        let names = self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Vec<Value> = names
            .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
            .collect();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = json!({"required": true, "content": {"application/json": schema(body)}});
        }
        operation
    }
}

impl Answer {
    fn content(self) -> Value {
        let text = || json!({"schema": {"type": "string"}});
        match self {
            Self::Json(name) => json!({"application/json": schema(name)}),
            Self::JsonOrEvents(name) => json!({"application/json": schema(name), "text/event-stream": text()}),
            Self::JsonOrLines(name) => json!({"application/json": schema(name), "application/x-ndjson": text()}),
            Self::Events => json!({"text/event-stream": text()}),
            Self::Text => json!({"application/openmetrics-text": text(), "text/plain": text()}),
            Self::Page => json!({"text/html": text(), "text/plain": text()}),
        }
    }
}

fn schema(name: &str) -> Value {
    json!({"schema": {"$ref": format!("#/components/schemas/{name}")}})
}
