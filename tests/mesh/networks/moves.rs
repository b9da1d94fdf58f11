//! Machines that get another address in mid-sentence, as one does that goes from Wi-Fi to a cable: answers go on.

use std::time::{Duration, Instant};

use qmesh_tests::http;
use serde_json::{Value, json};

use super::{super::Serving, join, lab::Lab, serve, serve_at};

#[test]
fn a_worker_that_moves_in_mid_sentence_changes_no_text() {
    let Some(mut lab) = Lab::new() else { return };
    let hosts = [10, 11, 12].map(|number| lab.host(number));
    let [coordinator, workers @ ..] = hosts;
    let (serving, _model) = serve(&mut lab, &coordinator, &[]);
    let _workers = join(&serving, &workers);
    serving.wait_ready(2);
    // So that an answer takes a while.
    [&coordinator, &workers[0], &workers[1]].into_iter().for_each(|host| host.limit(300, 2));
    let (undisturbed, _) = stream(&serving, || ());
    // The first one dials the second, and both dial the coordinator.
    for (host, from, to) in [(&workers[0], 11, 21), (&workers[1], 12, 22), (&workers[1], 22, 12)] {
        let (text, gap) = stream(&serving, || host.moves(from, to));
        println!("longest gap when 198.51.100.{from} became 198.51.100.{to}: {gap:?}");
        assert_eq!(text, undisturbed);
        serving.wait_ready(2);
    }
}

#[test]
fn a_coordinator_that_moves_in_mid_sentence_changes_no_text() {
    let Some(mut lab) = Lab::new() else { return };
    let hosts = [10, 11, 12].map(|number| lab.host(number));
    let [coordinator, workers @ ..] = hosts;
    let places = ["--listen", "0.0.0.0:4433", "--advertise", "198.51.100.10:4433", "--min-workers", "2"];
    let (serving, _model) = serve_at(&mut lab, &coordinator, &places);
    let _workers = join(&serving, &workers);
    serving.wait_ready(2);
    [&coordinator, &workers[0], &workers[1]].into_iter().for_each(|host| host.limit(300, 2));
    let (undisturbed, _) = stream(&serving, || ());
    for (from, to) in [(10, 20), (20, 30)] {
        let (text, gap) = stream(&serving, || coordinator.moves(from, to));
        println!("longest gap when the coordinator's 198.51.100.{from} became 198.51.100.{to}: {gap:?}");
        assert_eq!(text, undisturbed);
        serving.wait_ready(2);
        // It called them: they did not have to miss it first.
        let status = http::get(&serving.path("/api/status")).body;
        let found: Vec<&Value> = status["workers"].as_array().unwrap().iter().map(|w| &w["found"]["by"]).collect();
        assert_eq!(found, ["call", "call"], "{status}");
    }
}

/// A long answer and the longest time without a token, with something that happens in between.
fn stream(serving: &Serving, happens: impl FnOnce()) -> (String, Duration) {
    let body: Value = json!({
        "model": "words", "prompt": "w5 w6", "max_tokens": 150, "temperature": 0, "stream": true, "ignore_eos": true,
    });
    let (mut text, mut pieces, mut happens) = (String::new(), 0, Some(happens));
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    http::stream(&serving.path("/v1/completions"), &body, |event| {
        assert!(event["error"].is_null(), "{event}");
        text.push_str(http::delta(event));
        pieces += 1;
        if pieces > 1 {
            longest = longest.max(last.elapsed());
        }
        last = Instant::now();
        if pieces == 20 {
            happens.take().into_iter().for_each(|happens| happens());
        }
    });
    (text, longest)
}
