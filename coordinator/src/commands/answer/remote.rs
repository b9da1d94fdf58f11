//! One answer of a coordinator that runs already, by its HTTP API.

use std::{
    io::BufReader,
    time::{Duration, Instant},
};

use qmesh_models::chat::Message;
use qmesh_net::Sampling;
use serde_json::{Map, Value, json};
use tokio::{sync::mpsc, task::spawn_blocking};

use super::Answer;
use crate::{
    cli::{CoordinatorArgs, DryArgs, Failure},
    commands::{server_events::ServerEvents, status},
    render::{output, progress::PromptProgress},
    text::{TextEnd, TextEndReason},
};

/// What is asked of a coordinator.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::commands) struct RemoteRequest {
    path: &'static str,
    body: Map<String, Value>,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Progress {
        computed: u64,
        total: u64,
    },
    Thought(String),
    Said(String),
    Took(Took),
    /// It came to its end.
    Done,
    Failed(String),
}

/// What an answer took, as far as a chunk of it says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Took {
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    generated_tokens: Option<u64>,
    prefill_ms: Option<f64>,
    decode_ms: Option<f64>,
}

impl RemoteRequest {
    /// A conversation up to where the model speaks.
    pub(in crate::commands) fn chat(messages: &[Message]) -> Self {
        Self::new("/v1/chat/completions", "messages", json!(messages))
    }

    /// A text that goes on as it is.
    pub(in crate::commands) fn raw(prompt: &str) -> Self {
        Self::new("/v1/completions", "prompt", json!(prompt))
    }

    fn new(path: &'static str, name: &str, asked: Value) -> Self {
        let asked = (name.to_owned(), asked);
        let stream = [
            ("stream", json!(true)),
            ("stream_options", json!({"include_usage": true})),
            ("return_progress", json!(true)),
        ];
        Self { path, body: stream.map(|(name, value)| (name.to_owned(), value)).into_iter().chain([asked]).collect() }
    }

    /// How tokens are drawn, and how many at most.
    pub(in crate::commands) fn drawn(mut self, max_tokens: usize, sampling: &Sampling, dry: &DryArgs) -> Self {
        let mut set = |name: &str, value: Value| drop(self.body.insert(name.to_owned(), value));
        set("max_tokens", json!(max_tokens));
        set("temperature", json!(sampling.temperature));
        set("top_k", json!(sampling.top_k));
        set("top_p", json!(sampling.top_p));
        set("min_p", json!(sampling.min_p));
        set("typical_p", json!(sampling.typical_p));
        set("xtc_probability", json!(sampling.xtc_probability));
        set("xtc_threshold", json!(sampling.xtc_threshold));
        set("repeat_penalty", json!(sampling.repeat_penalty));
        set("frequency_penalty", json!(sampling.frequency_penalty));
        set("presence_penalty", json!(sampling.presence_penalty));
        // The API has signed seeds of the same bits.
        set("seed", json!(sampling.seed.cast_signed()));
        if dry.multiplier > 0.0 {
            set("dry_multiplier", json!(dry.multiplier));
            set("dry_base", json!(dry.base));
            set("dry_allowed_length", json!(dry.allowed_length));
            set("dry_penalty_last_n", json!(dry.window));
            if !dry.breakers.is_empty() {
                set("dry_sequence_breakers", json!(dry.breakers));
            }
        }
        self
    }
}

/// Streams an answer to standard output, with a line end after it, and to `said`, which has no thoughts. When the future is
/// dropped, the connection ends with the next piece that comes, and the answer with it.
///
/// # Errors
/// No answer, or only a part of one.
pub(in crate::commands) async fn stream(
    coordinator: &CoordinatorArgs,
    request: RemoteRequest,
    said: &mut String,
) -> Result<Answer, Failure> {
    let (sender, mut parts) = mpsc::channel(PARTS);
    let asked = CoordinatorArgs { url: coordinator.url.clone(), api_key: coordinator.api_key.clone() };
    let started = Instant::now();
    let reading = spawn_blocking(move || read(&asked, &request, &sender));
    let (mut shown, mut first, mut took, mut bar) =
        (output::Shown::Nothing, None, Took::default(), PromptProgress::default());
    let mut ended = Err("the answer ended in the middle".to_owned());
    while let Some(part) = parts.recv().await {
        if matches!(part, Part::Thought(_) | Part::Said(_)) {
            bar.done();
            first.get_or_insert_with(|| started.elapsed());
        }
        match part {
            Part::Progress { computed, total } => bar.advance(computed, total),
            Part::Thought(thought) => shown = output::thought(&thought, shown)?,
            Part::Said(text) => {
                shown = output::said(text.as_bytes(), shown)?;
                said.push_str(&text);
            }
            Part::Took(more) => took = took.and(more),
            Part::Done => ended = Ok(()),
            Part::Failed(text) => ended = Err(text),
        }
    }
    bar.done();
    if shown == output::Shown::Thoughts || !said.is_empty() && !said.ends_with('\n') {
        output::raw(b"\n")?;
    }
    reading.await.map_err(|error| Failure::failed(format!("reading ended: {error}")))??;
    ended.map_err(|text| Failure::failed(format!("{}: {text}", coordinator.url)))?;
    Ok(Answer { end: took.end(), first_token: first.unwrap_or_else(|| started.elapsed()) })
}

/// Reads an answer as it comes, as long as somebody wants it. Blocks.
fn read(coordinator: &CoordinatorArgs, request: &RemoteRequest, parts: &mpsc::Sender<Part>) -> Result<(), Failure> {
    let body = Value::Object(request.body.clone()).to_string();
    let body = status::post(coordinator, request.path, &body)?;
    let mut events = ServerEvents(BufReader::new(body.into_reader()));
    loop {
        match events.next_event() {
            Ok(Some((_, text))) => {
                if understood(&text).into_iter().any(|part| parts.blocking_send(part).is_err()) {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(error) => return Err(Failure::failed(format!("{}: {error}", coordinator.url))),
        }
    }
}

/// What a chunk of a stream says.
fn understood(text: &str) -> Vec<Part> {
    if text == "[DONE]" {
        return vec![Part::Done];
    }
    let Ok(chunk) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    if let Some(error) = chunk.get("error") {
        return vec![Part::Failed(error["message"].as_str().unwrap_or("it failed").to_owned())];
    }
    let choice = &chunk["choices"][0];
    let piece = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let said = piece(&choice["delta"]["content"]).or_else(|| piece(&choice["text"]));
    let progress = &chunk["prompt_progress"];
    let progress = progress["processed"].as_u64().zip(progress["total"].as_u64());
    let took = Took::of(&chunk);
    progress
        .map(|(computed, total)| Part::Progress { computed, total })
        .into_iter()
        .chain(piece(&choice["delta"]["reasoning_content"]).map(Part::Thought))
        .chain(said.map(Part::Said))
        .chain(Some(Part::Took(took)).filter(|_| took != Took::default()))
        .collect()
}

impl Took {
    fn of(chunk: &Value) -> Self {
        let (usage, timings) = (&chunk["usage"], &chunk["timings"]);
        Self {
            prompt_tokens: usage["prompt_tokens"].as_u64(),
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
            generated_tokens: usage["completion_tokens"].as_u64(),
            prefill_ms: timings["prompt_ms"].as_f64(),
            decode_ms: timings["predicted_ms"].as_f64(),
        }
    }

    /// The same, as what came later has it.
    fn and(self, later: Self) -> Self {
        Self {
            prompt_tokens: later.prompt_tokens.or(self.prompt_tokens),
            cached_tokens: later.cached_tokens.or(self.cached_tokens),
            generated_tokens: later.generated_tokens.or(self.generated_tokens),
            prefill_ms: later.prefill_ms.or(self.prefill_ms),
            decode_ms: later.decode_ms.or(self.decode_ms),
        }
    }

    fn end(self) -> TextEnd {
        let tokens = |tokens: Option<u64>| tokens.and_then(|tokens| usize::try_from(tokens).ok()).unwrap_or(0);
        let time = |ms: Option<f64>| Duration::try_from_secs_f64(ms.unwrap_or(0.0) / 1e3).unwrap_or_default();
        TextEnd {
            reason: TextEndReason::EndToken,
            prompt_tokens: tokens(self.prompt_tokens),
            generated_tokens: tokens(self.generated_tokens),
            thought_tokens: 0,
            stop: None,
            cached_tokens: tokens(self.cached_tokens),
            prefill: time(self.prefill_ms),
            decode: time(self.decode_ms),
        }
    }
}

/// Pieces that wait to be shown.
const PARTS: usize = 64;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;

    /// A coordinator that answers one request with these bytes, and then the head and the body that came.
    fn served(answer: &'static str) -> (CoordinatorArgs, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let asked = whole(&mut connection);
            connection.write_all(answer.as_bytes()).unwrap();
            asked
        });
        (CoordinatorArgs { url, api_key: Some("sesame".parse().unwrap()) }, serving)
    }

    fn whole(connection: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        loop {
            let mut more = [0; 4096];
            let count = connection.read(&mut more).unwrap();
            bytes.extend_from_slice(&more[..count]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if count == 0 || text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('}')) {
                return text;
            }
        }
    }

    fn request() -> RemoteRequest {
        let sampling = Sampling { temperature: 0.0, seed: 7, ..Sampling::default() };
        let dry = DryArgs { multiplier: 0.0, base: 1.75, allowed_length: 2, window: 64, breakers: Vec::new() };
        RemoteRequest::chat(&[Message::new("user", "Why?")]).drawn(16, &sampling, &dry)
    }

    #[tokio::test]
    async fn an_answer_is_read_with_its_measures_and_without_its_thoughts() {
        let (coordinator, serving) = served(concat!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n",
            "data: {\"choices\":[],\"prompt_progress\":{\"total\":9,\"cache\":0,\"processed\":4,\"time_ms\":1}}\n\n",
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"Well.\"}}]}\n\n: ping\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Be\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"cause.\"},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,",
            "\"prompt_tokens_details\":{\"cached_tokens\":4}},\"timings\":{\"prompt_ms\":90.0,\"predicted_ms\":100.0}}\n\n",
            "data: [DONE]\n\n",
        ));
        let mut said = String::new();
        let answer = stream(&coordinator, request(), &mut said).await.unwrap();
        assert_eq!(said, "Because.");
        assert!(
            answer.rates().starts_with("9 tokens (100.0 tok/s) in, 3 tokens (20.0 tok/s) out"),
            "{}",
            answer.rates()
        );
        let asked = serving.join().unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/chat/completions ") && head.contains("Bearer sesame"), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["messages"][0]["content"], &body["seed"], &body["max_tokens"]),
            (&json!("Why?"), &json!(7), &json!(16))
        );
        assert_eq!(body.get("dry_multiplier"), None);
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_in_the_words_of_the_coordinator() {
        let refused = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n\
                       {\"error\":{\"message\":\"the mesh waits for workers now\"}}";
        let broken =
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"error\":{\"message\":\"a worker was lost\"}}\n\n";
        let cut = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {\"choices\":[{\"text\":\"x\"}]}\n\n";
        let locked = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        for (answer, why) in
            [(refused, "the mesh waits"), (broken, "a worker was lost"), (cut, "ended in the middle"), (locked, "key")]
        {
            let (coordinator, serving) = served(answer);
            let failure = stream(&coordinator, request(), &mut String::new()).await.unwrap_err();
            assert!(failure.text.contains(why), "{why}: {}", failure.text);
            serving.join().unwrap();
        }
    }
}
