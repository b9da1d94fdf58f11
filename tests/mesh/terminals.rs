//! Two terminals: one serves, workers join in the other, clients stream.

use std::{collections::BTreeSet, fs, thread, time::Duration};

use qmesh_tests::{default_model, http, is_real, process};
use serde_json::{Value, json};

use super::{MODEL, PULLING, QUESTION, STARTING, Serving};

#[test]
fn two_workers_join_and_a_client_streams() {
    let serving = Serving::start(&["--min-workers", "2"]);
    let not_yet = http::get(&serving.path("/ready"));
    assert_eq!(not_yet.status, 503, "{not_yet:?}");
    let _workers = [serving.join("left", &[]), serving.join("right", &[])];
    serving.wait_ready(2);

    let (text, usage) = stream_chat(&serving.url, QUESTION);
    assert!(!is_real("an answer that is right") || text.contains("Paris"), "{text}");
    assert_eq!(
        usage["total_tokens"],
        json!(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );

    let whole = http::post(&serving.path("/v1/chat/completions"), &chat(QUESTION));
    assert_eq!(whole.status, 200, "{whole:?}");
    assert_eq!(whole.body["choices"][0]["message"]["content"], json!(text), "streamed or whole, the same text");

    let models = http::get(&serving.path("/v1/models")).body;
    assert_eq!(models["data"][0]["id"], json!(MODEL));
    let missing = http::post(&serving.path("/v1/chat/completions"), &json!({"model": "gpt-9", "messages": []}));
    assert_eq!((missing.status, &missing.body["error"]["code"]), (404, &json!("model_not_found")));
    each_worker_holds_its_own_tensors_only(&serving);
}

#[test]
fn several_clients_at_once_get_what_each_gets_alone() {
    let serving = Serving::start(&["--local-workers", "2", "--min-workers", "2"]);
    serving.wait_ready(2);
    let url = serving.url.as_str();
    let questions = ["Name a fruit.", "What is 2 + 2?", "Who wrote Hamlet?", "Say hello in French.", "Name a planet."];
    let alone: Vec<String> = questions.iter().map(|q| stream_chat(&serving.url, q).0).collect();
    let together: Vec<String> = thread::scope(|scope| {
        let clients = questions.map(|q| scope.spawn(|| stream_chat(url, q).0));
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_conversation_goes_on_from_what_it_left() {
    let story = "The tide came in and the boats went out, and the gulls went with the boats. ".repeat(8);
    let complete = |serving: &Serving, prompt: &str| {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 40, "temperature": 0});
        let answer = http::post(&serving.path("/v1/completions"), &body).body;
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
        (answer["choices"][0]["text"].as_str().expect("a text").to_owned(), cached)
    };
    let fresh = Serving::start(&["--local-workers", "1", "--no-prefix-reuse", "--no-speculation"]);
    fresh.wait_ready(1);
    let serving = Serving::start(&["--local-workers", "2", "--min-workers", "2"]);
    serving.wait_ready(2);
    let (first, cached) = complete(&serving, &story);
    assert_eq!((&first, cached), (&complete(&fresh, &story).0, 0));
    let next = format!("{story}{first} And then");
    let (second, cached) = complete(&serving, &next);
    assert_eq!((second, 0), complete(&fresh, &next), "drafts and shared pages change no text");
    assert!(cached >= 128 && cached % 64 == 0, "{cached} tokens were there");
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let serving = Serving::start(&["--local-workers", "1", "--parallel", "1"]);
    serving.wait_ready(1);
    let body =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 900, "stream": true, "temperature": 0});
    let url = serving.path("/v1/completions");
    let gone = std::panic::catch_unwind(|| http::stream(&url, &body, |_| panic!("enough")));
    assert!(gone.is_err());
    // With one place only, the next request needs the place of the one that left.
    let started = std::time::Instant::now();
    stream_chat(&serving.url, "Name a fruit.");
    assert!(started.elapsed() < Duration::from_secs(15), "the first request ran on");
}

#[test]
fn run_demo_and_plan_do_what_they_say_and_leave_no_process() {
    let model = &default_model();
    let ran =
        process::coordinator(&["run", model, "--workers", "3", "-p", QUESTION, "--temp", "0", "-n", "40"], PULLING);
    assert!(ran.status.success(), "{}", ran.stderr);
    assert!(!ran.stdout.trim().is_empty(), "{}", ran.stdout);
    assert!(ran.stderr.contains("tok/s"), "{}", ran.stderr);

    let planned = process::coordinator(&["plan", model, "--workers", "3", "--no-measure", "--json"], STARTING);
    let plan: Value = serde_json::from_str(&planned.stdout).expect("JSON");
    assert_eq!(plan["stages"].as_array().map(Vec::len), Some(3), "{plan}");

    if !is_real("the right answer, and the demo") {
        return;
    }
    assert!(ran.stdout.contains("Paris"), "{}", ran.stdout);
    let demo = process::coordinator(&["demo"], PULLING);
    assert!(demo.status.success(), "{}", demo.stderr);
    assert!(!demo.stdout.trim().is_empty());
}

#[test]
fn ctrl_c_ends_a_coordinator_and_its_workers() {
    let (serving, children) = serve_with_two_children();
    serving.signal("INT");
    let ended = process::finish(serving, Duration::from_secs(20));
    assert!(matches!(ended.status.code(), Some(0 | 130)), "{ended:?}");
    assert_gone(&children);
}

#[test]
fn workers_do_not_outlive_a_killed_coordinator() {
    let (serving, children) = serve_with_two_children();
    serving.signal("KILL");
    assert_gone(&children);
}

/// A coordinator that serves, and the processes of its two workers.
fn serve_with_two_children() -> (process::Running, Vec<u32>) {
    let mut command = process::command("coordinator");
    command.args([
        "serve",
        &default_model(),
        "--port",
        "0",
        "--listen",
        "127.0.0.1:0",
        "--local-workers",
        "2",
        "--ctx-size",
        "512",
    ]);
    let mut serving = process::Running::start(command);
    serving.wait_for(PULLING, "the API's address", super::api_address);
    let children = wait_for_children(serving.pid(), 2);
    (serving, children)
}

fn chat(question: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0})
}

/// The streamed answer and the usage that came with it.
pub(super) fn stream_chat(url: &str, question: &str) -> (String, Value) {
    let mut body = chat(question);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (mut text, mut usage, mut reasons) = (String::new(), Value::Null, vec![]);
    http::stream(&format!("{url}/v1/chat/completions"), &body, |event| {
        text.push_str(http::delta(event));
        reasons.extend(event["choices"][0]["finish_reason"].as_str().map(str::to_owned));
        if event["choices"].as_array().is_some_and(Vec::is_empty) {
            usage = event["usage"].clone();
        }
    });
    assert_eq!(reasons.len(), 1, "one finish reason: {reasons:?}");
    (text, usage)
}

/// What the workers stored: together the model's tensors, and of each other's only the embedding that ties both ends.
fn each_worker_holds_its_own_tensors_only(serving: &Serving) {
    let held = |name: &str| serving.blobs(name).into_keys().collect::<BTreeSet<_>>();
    let (left, right) = (held("left"), held("right"));
    assert!(left.len() > 20 && right.len() > 20, "{} and {} tensors", left.len(), right.len());
    let both: Vec<_> = left.intersection(&right).collect();
    assert!(both.len() <= 1, "only the tied embedding table is held twice: {both:?}");
    assert_eq!(left.union(&right).count(), 272, "the tensors of {MODEL}");
}

fn wait_for_children(parent: u32, count: usize) -> Vec<u32> {
    let until = std::time::Instant::now() + STARTING;
    loop {
        let found = children(parent);
        if found.len() == count {
            return found;
        }
        assert!(std::time::Instant::now() < until, "{found:?} of {count} children");
        thread::sleep(Duration::from_millis(20));
    }
}

fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    ids.filter(|&id| parent_of(id) == Some(parent)).collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // "pid (name) state parent …", and a name may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn assert_gone(processes: &[u32]) {
    let until = std::time::Instant::now() + Duration::from_secs(15);
    let alive = |p: &u32| fs::read_to_string(format!("/proc/{p}/stat")).is_ok_and(|s| !s.contains(") Z "));
    while processes.iter().any(alive) {
        assert!(std::time::Instant::now() < until, "left behind: {processes:?}");
        thread::sleep(Duration::from_millis(20));
    }
}
