//! What stays, stays: plans change beside running answers, and workers that come and go disturb nobody.
//!
//! At full length (`QMESH_SOAK=1`): eight streams of 1,700 tokens, and a worker that flaps for two minutes.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use qmesh_tests::http;
use serde_json::{Value, json};

use super::{MODEL, Serving, number, soak};

#[test]
fn a_joiner_takes_over_layers_without_a_gap() {
    let _alone = alone();
    let (streams, words) = if soak() { (8, 1300) } else { (3, 350) };
    let serving = Serving::start_for(
        &qmesh_tests::default_model(),
        2048,
        &["--min-workers", "2", "--parallel", &streams.to_string()],
    );
    let _first = [serving.join("one", &[]), serving.join("two", &[])];
    serving.wait_ready(2);
    let undisturbed: Vec<_> = (0..streams).map(|i| stream(&serving.url, &prompt(i, words), 40, |_| {})).collect();
    let (epoch, before) = (epoch(&serving), layers(&serving));

    let (url, going, joining) = (serving.url.clone(), Flag::new(true), Flag::new(false));
    let answers: Vec<_> = (0..streams)
        .map(|i| {
            let (url, going, joining) = (url.clone(), going.clone(), joining.clone());
            thread::spawn(move || endless(&url, &prompt(i, words), &going, &joining))
        })
        .collect();
    // Every stream has its first token before the third worker comes.
    wait(&serving, "every answer to begin", |s| number(s, "running") == streams as u64 && number(s, "waiting") == 0);
    joining.set(true);
    let _third = serving.join("three", &[]);
    let joined = Instant::now();
    wait(&serving, "a third stage", |s| s["stages"].as_array().is_some_and(|stages| stages.len() == 3));
    println!("the third worker serves {:?} after it was started", joined.elapsed());
    let (epoch_after, after) = (self::epoch(&serving), layers(&serving));
    going.set(false);
    let mut longest = Duration::ZERO;
    for (i, answer) in answers.into_iter().enumerate() {
        let (text, gap) = answer.join().expect("a stream goes on");
        longest = longest.max(gap);
        assert!(text.starts_with(&undisturbed[i].0), "stream {i}: {text:?} and {:?}", undisturbed[i].0);
    }
    let moved = moved(&before, &after);
    println!(
        "epoch {epoch}: {before:?}; epoch {epoch_after}: {after:?}; {moved} layers moved; longest gap {longest:?}"
    );
    assert!(moved * 4 >= before.last().map_or(0, |(.., end)| *end), "a quarter of the layers changes hands");
    assert!(longest < Duration::from_secs(3), "a stream stood still for {longest:?}");
}

#[test]
fn a_joiner_that_would_not_help_stands_by() {
    let _alone = alone();
    let serving = Serving::start(&["--min-workers", "2"]);
    // Beside eight threads, one more makes no stage so much faster that it were worth a change.
    let _first = [serving.join("one", &["--threads", "4"]), serving.join("two", &["--threads", "4"])];
    serving.wait_ready(2);
    let before = layers(&serving);
    let mut third = None;
    let (_, gap) = stream(&serving.url, &prompt(0, 50), 120, |pieces| {
        if pieces == 10 {
            third = Some(serving.join("three", &["--threads", "1"]));
        }
    });
    let status = wait(&serving, "a standby", |s| !worker(s, "three")["note"].is_null());
    println!("{}; longest gap {gap:?}", worker(&status, "three")["note"]);
    assert_eq!(layers(&serving), before);
    assert!(gap < Duration::from_millis(500), "the stream stood still for {gap:?}");
}

#[test]
fn a_worker_that_flaps_ends_no_answer() {
    let _alone = alone();
    let long = if soak() { Duration::from_secs(120) } else { Duration::from_secs(24) };
    let serving = Serving::start(&["--min-workers", "1", "--parallel", "2"]);
    let _steady = serving.join("steady", &[]);
    serving.wait_ready(1);
    let (undisturbed, _) = stream(&serving.url, &prompt(0, 20), 60, |_| {});
    let (url, going) = (serving.url.clone(), Flag::new(true));
    let still = going.clone();
    let answers = thread::spawn(move || {
        let mut answers = vec![];
        while still.get() {
            answers.push(stream(&url, &prompt(0, 20), 60, |_| {}));
        }
        answers
    });
    let until = Instant::now() + long;
    while Instant::now() < until {
        let flapping = serving.join("flapping", &[]);
        thread::sleep(Duration::from_secs(3));
        flapping.signal("KILL");
        drop(flapping);
        thread::sleep(Duration::from_millis(4500));
    }
    going.set(false);
    let answers = answers.join().expect("no stream ends early");
    let longest = answers.iter().map(|(_, gap)| *gap).max().unwrap_or_default();
    println!("{} answers, epoch {}, longest gap {longest:?}", answers.len(), epoch(&serving));
    assert!(answers.len() > 2 && answers.iter().all(|(text, _)| *text == undisturbed));
}

/// Streams greedy answers to one prompt after the other until told to stop; the first text, and the longest gap in any that
/// ended after the third worker had begun to join: before that, the prompts of the others are computed between the tokens.
fn endless(url: &str, prompt: &str, going: &Flag, joining: &Flag) -> (String, Duration) {
    let (mut first, mut longest) = (None, Duration::ZERO);
    while first.is_none() || going.get() {
        let mut last: Option<Instant> = None;
        let (text, _) = stream(url, prompt, 300, |_| {
            let now = Instant::now();
            longest = longest.max(last.filter(|_| joining.get()).map_or(Duration::ZERO, |last| now - last));
            last = Some(now);
        });
        let first = first.get_or_insert_with(|| text.clone());
        assert_eq!(text, *first, "the same text again");
    }
    (first.expect("one answer at least"), longest)
}

/// What one thread tells the others.
#[derive(Clone)]
struct Flag(Arc<AtomicBool>);

impl Flag {
    fn new(value: bool) -> Self {
        Self(Arc::new(AtomicBool::new(value)))
    }

    fn set(&self, value: bool) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A streamed greedy answer and the longest time between two of its pieces.
fn stream(url: &str, prompt: &str, tokens: usize, mut each: impl FnMut(usize)) -> (String, Duration) {
    let body: Value = json!({
        "model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true,
        "logit_bias": {"2": -100, "0": -100},
    });
    let (mut text, mut pieces, mut last, mut longest) = (String::new(), 0, None, Duration::ZERO);
    http::stream(&format!("{url}/v1/completions"), &body, |event| {
        assert!(event["error"].is_null(), "{event}");
        longest = longest.max(last.map_or(Duration::ZERO, |last: Instant| last.elapsed()));
        last = Some(Instant::now());
        text.push_str(http::delta(event));
        pieces += 1;
        each(pieces);
    });
    (text, longest)
}

/// So many words that no other prompt begins with.
fn prompt(number: usize, words: usize) -> String {
    let word =
        |i: usize| ["river", "stone", "lamp", "cloud", "apple", "garden", "window"][(i * (number + 2) + i / 5) % 7];
    format!("Story {number}: {}", (0..words).map(word).collect::<Vec<_>>().join(" "))
}

fn wait(serving: &Serving, what: &str, met: impl Fn(&Value) -> bool) -> Value {
    // At full length, a new stage computes 13,600 rows beside the running answers before it takes over.
    let until = Instant::now() + Duration::from_secs(if soak() { 600 } else { 120 });
    loop {
        let status = http::get(&serving.path("/api/status")).body;
        if met(&status) {
            return status;
        }
        assert!(Instant::now() < until, "waited for {what}: {status}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn worker(status: &Value, name: &str) -> Value {
    let workers = status["workers"].as_array().cloned().unwrap_or_default();
    workers.into_iter().find(|w| w["name"] == name).unwrap_or_default()
}

fn epoch(serving: &Serving) -> u64 {
    number(&http::get(&serving.path("/api/status")).body, "epoch")
}

/// Who holds which layers.
fn layers(serving: &Serving) -> Vec<(String, u64, u64)> {
    let stage = |s: &Value| {
        (s["worker"].as_str().unwrap_or_default().to_owned(), number(s, "first_layer"), number(s, "end_layer"))
    };
    serving.stages().iter().map(stage).collect()
}

/// Layers that another worker holds than before.
fn moved(before: &[(String, u64, u64)], after: &[(String, u64, u64)]) -> u64 {
    let holder = |stages: &[(String, u64, u64)], layer: u64| {
        stages.iter().find(|(_, first, end)| (*first..*end).contains(&layer)).map(|(name, ..)| name.clone())
    };
    let layers = before.last().map_or(0, |(.., end)| *end);
    (0..layers).filter(|&layer| holder(before, layer) != holder(after, layer)).count() as u64
}

/// Gaps are measured: these tests do not disturb each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
