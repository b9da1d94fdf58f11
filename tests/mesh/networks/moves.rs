//! Machines that get another address in mid-sentence, as one does that goes from Wi-Fi to a cable: answers go on.

use std::time::{Duration, Instant};

use qmesh_tests::http;
use serde_json::{Value, json};

use super::{super::Serving, join, lab::Lab, serve};

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
