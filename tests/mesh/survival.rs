//! Workers die, and answers go on.

use std::time::{Duration, Instant};

use qmesh_tests::{default_model, http, process::Running};
use serde_json::{Value, json};

use super::{MODEL, Serving};

#[test]
fn a_killed_worker_changes_no_text_and_a_new_one_joins_in() {
    let serving = Serving::start(&["--min-workers", "2"]);
    let mut workers = vec![serving.join("one", &[]), serving.join("two", &[])];
    serving.wait_ready(2);
    let undisturbed = stream(&serving, |_| {});

    // The others take the layers of the one that dies, whichever stage it was.
    workers.push(serving.join("three", &[]));
    serving.wait_ready(3);
    let mut victims = workers.into_iter();
    let mut victim = victims.next();
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    let text = stream(&serving, |pieces| {
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if pieces == 20 {
            victim.take().inspect(|v: &Running| v.signal("KILL"));
        }
    });
    assert_eq!(text, undisturbed, "the same text, with a worker lost in between");
    assert!(longest < Duration::from_secs(30), "the stream stood still for {longest:?}");
    serving.wait_ready(2);
    println!("longest gap with a kill -9 in mid-sentence: {longest:?}");
}

#[test]
fn workers_say_how_fast_they_are_before_layers_are_dealt() {
    let serving = Serving::start_measuring("0", &default_model(), 1024, &["--min-workers", "2"]);
    let _workers = [serving.join("one", &[]), serving.join("two", &[])];
    serving.wait_ready(2);
    let status = http::get(&serving.path("/api/status")).body;
    let speeds = status["workers"].as_array().unwrap().iter().map(|worker| &worker["speed"]);
    assert!(speeds.clone().count() == 2 && speeds.clone().all(|speed| speed["source"] == "measured"), "{status}");
    let expected = status["prediction"]["tokens_per_s"].as_f64().unwrap_or_default();
    assert!(expected > 0.0 && expected.is_finite(), "{status}");
    let text = stream(&serving, |_| {});
    assert!(!text.is_empty());
    // What they took to find out is no part of their peak: they may take what the plan says, and no more.
    for stage in serving.stages() {
        let (peak, planned) = (super::number(&stage, "peak_bytes"), super::number(&stage, "planned_bytes"));
        assert!(peak <= planned, "{stage}");
    }
}

#[test]
fn without_workers_the_mesh_says_so_and_streams_do_not_lie() {
    let serving = Serving::start(&["--min-workers", "1"]);
    let worker = serving.join("only", &["--once"]);
    serving.wait_ready(1);
    worker.signal("KILL");
    let until = Instant::now() + Duration::from_secs(10);
    while http::get(&serving.path("/ready")).status == 200 {
        assert!(Instant::now() < until, "ready without a worker");
        std::thread::sleep(Duration::from_millis(50));
    }
    let refused = http::post(&serving.path("/v1/completions"), &json!({"model": MODEL, "prompt": "Hello"}));
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.body["error"]["type"], json!("unavailable_error"), "{refused:?}");
    // It comes back, and so does the mesh.
    let _again = serving.join("only", &[]);
    serving.wait_ready(1);
}

#[test]
fn a_worker_told_to_stop_leaves_with_status_0() {
    let serving = Serving::start(&["--min-workers", "1"]);
    let worker = serving.join("polite", &[]);
    serving.wait_ready(1);
    worker.signal("TERM");
    let ended = qmesh_tests::process::finish(worker, Duration::from_secs(10));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// A long greedy answer, `each` told how many pieces have come.
pub(super) fn stream(serving: &Serving, mut each: impl FnMut(usize)) -> String {
    let body: Value = json!({
        "model": MODEL, "prompt": "Once upon a time, in a small village,", "max_tokens": 120, "temperature": 0, "stream": true,
    });
    let (mut text, mut pieces) = (String::new(), 0);
    http::stream(&serving.path("/v1/completions"), &body, |event| {
        assert!(event["error"].is_null(), "{event}");
        text.push_str(http::delta(event));
        pieces += 1;
        each(pieces);
    });
    text
}
