//! Memory that is really limited: three workers hold a model that none of them could.

use std::{process::Command, time::Duration};

use qmesh_tests::{
    is_real,
    process::{self, Running},
};

use super::{PULLING, QUESTION, Serving, number, terminals::stream_chat, worker_by};

/// Writable memory that a worker gets: less than the default model, its KV and a process; more than a third of them.
const LIMIT_BYTES: u64 = 128 << 20;

#[test]
fn three_limited_workers_hold_what_one_cannot() {
    let serving = Serving::start(&["--min-workers", "1", "--parallel", "1"]);
    let _first = limited(&serving, "small-1");
    let mut status = String::new();
    let refused = wait_until(Duration::from_secs(20), || {
        status = state(&serving);
        status.contains("failed")
    });
    assert!(refused, "one worker alone must be told that it is too small: {status}");
    assert!(status.contains("MB"), "the text names what is needed: {status}");

    let _others = [limited(&serving, "small-2"), limited(&serving, "small-3")];
    serving.wait_ready(3);
    let (text, _) = stream_chat(&serving.url, QUESTION);
    assert!(!is_real("an answer that is right") || text.contains("Paris"), "{text}");
    for stage in serving.stages() {
        let (peak, planned) = (number(&stage, "peak_bytes"), number(&stage, "planned_bytes"));
        println!("stage {}: peak {} MB, planned {} MB", stage["stage"], peak >> 20, planned >> 20);
        assert!(peak > 0 && planned > 0, "{stage}");
    }
}

/// A worker whose process cannot allocate more than the limit, and knows it only from the system.
fn limited(serving: &Serving, name: &str) -> Running {
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={LIMIT_BYTES}")).arg(process::binaries().join("shard-worker"));
    worker_by(command, &serving.ticket, name, serving.folder.path(), &[])
}

/// What the pipeline is doing, and why.
pub(super) fn state(serving: &Serving) -> String {
    let status = qmesh_tests::http::get(&serving.path("/api/status")).body;
    format!("{}: {}", status["state"], status["text"])
}

/// Whether `met` comes true in time.
pub(super) fn wait_until(deadline: Duration, mut met: impl FnMut() -> bool) -> bool {
    let until = std::time::Instant::now() + deadline.min(PULLING);
    while std::time::Instant::now() < until {
        if met() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}
