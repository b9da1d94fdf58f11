//! What goes wrong at a terminal: one line that names what and what to do, and an exit code that is not 0.

use std::{fs, net::TcpListener, process::Command, time::Duration};

use qmesh_tests::{
    default_model, golden_file,
    process::{self, Output, Running},
};
use tempfile::TempDir;

use super::{Serving, worker};

#[test]
fn a_wrong_ticket_is_refused_in_one_line() {
    let serving = Serving::start(&["--min-workers", "1"]);
    let mut torn = serving.ticket.clone();
    torn.truncate(torn.len() - 3);
    one_line(&join(&torn), 2, &["ticket"]);
    one_line(&join("qmesh1abc"), 2, &["ticket"]);

    // Another mesh's ticket, with this one's address: the key does not match.
    let other = Serving::start(&["--min-workers", "1"]);
    let stopped = other.ticket.clone();
    drop(other);
    let refused = join(&stopped);
    assert_ne!(refused.status.code(), Some(0), "{refused:?}");
}

#[test]
fn a_rotated_ticket_lets_nobody_in() {
    let folder = TempDir::new().unwrap();
    let port = free_port();
    let first = serve(&folder, port, &[]);
    drop(first.1);
    let second = serve(&folder, port, &["--new-ticket"]);
    assert_ne!(first.0, second.0);
    let mut late = worker(&first.0, "late", folder.path(), &[]);
    let line = late.wait_for(Duration::from_secs(20), "the refusal", |l| l.contains("error").then(|| l.to_owned()));
    assert!(line.contains("ticket"), "{line}");
    let ended = process::finish(late, Duration::from_secs(5));
    assert_ne!(ended.status.code(), Some(0));
}

#[test]
fn an_expired_ticket_lets_nobody_in() {
    let serving = Serving::start(&["--min-workers", "1", "--ticket-expires", "1s"]);
    std::thread::sleep(Duration::from_secs(2));
    one_line(&join(&serving.ticket), 2, &["expired"]);
}

#[test]
fn an_expiry_outlives_a_restart_and_ends_with_a_new_ticket() {
    let folder = TempDir::new().unwrap();
    let port = free_port();
    let limited = serve(&folder, port, &["--ticket-expires", "1s"]);
    drop(limited.1);
    std::thread::sleep(Duration::from_secs(1));
    let again = serve(&folder, port, &[]);
    assert_eq!(limited.0, again.0, "the same ticket, with the same end");
    one_line(&join(&again.0), 2, &["expired"]);
    drop(again.1);
    let renewed = serve(&folder, port, &["--new-ticket"]);
    let mut late = worker(&renewed.0, "late", folder.path(), &[]);
    late.wait_for(Duration::from_secs(20), "the welcome", |line| line.contains("joined ").then_some(()));
}

#[test]
fn a_worker_waits_for_its_own_coordinator_to_return() {
    let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let port = free_port();
    let own = serve(&folder, port, &[]);
    drop(own.1);
    // Another mesh has the address meanwhile.
    let foreign = serve(&other, port, &[]);
    let mut patient = worker(&own.0, "patient", folder.path(), &[]);
    let wrong = patient.wait_for(Duration::from_secs(20), "the wrong key", |l| l.contains("key").then(|| l.to_owned()));
    assert!(wrong.contains("retrying"), "{wrong}");
    drop(foreign.1);
    let _own = serve(&folder, port, &[]);
    patient.wait_for(Duration::from_secs(30), "the welcome", |line| line.contains("joined ").then_some(()));
}

#[test]
fn bad_models_are_named() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    };
    let whole = fs::read(golden_file("tiny/llama.gguf")).unwrap();
    let plan = |model: &str| process::coordinator(&["plan", model, "--workers", "2"], DEADLINE);
    one_line(&plan("no-such-model"), 2, &["no-such-model"]);
    one_line(&plan(&write("empty.gguf", b"")), 1, &["empty.gguf"]);
    one_line(&plan(&write("page.gguf", b"<html><body>404 not found</body></html>")), 1, &["page.gguf", "HTML"]);
    one_line(&plan(&write("cut.gguf", &whole[..whole.len() - 1000])), 1, &["cut.gguf", "truncated"]);
    let mut absurd = whole.clone();
    absurd[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    one_line(&plan(&write("absurd.gguf", &absurd)), 1, &["absurd.gguf"]);
    let at = whole.windows(5).position(|w| w == b"llama").expect("the architecture's name");
    let mut unknown = whole;
    unknown[at..at + 5].copy_from_slice(b"lorem");
    one_line(&plan(&write("unknown.gguf", &unknown)), 1, &["lorem", "llama"]);
}

#[test]
fn what_is_mistyped_is_explained() {
    one_line(&process::coordinator(&["plan", &default_model(), "--wrokers", "2"], DEADLINE), 2, &["--wrokers"]);
    one_line(&process::coordinator(&["frobnicate"], DEADLINE), 2, &["frobnicate"]);
    one_line(&process::coordinator(&["status", "--url", "http://127.0.0.1:1"], DEADLINE), 3, &["127.0.0.1:1"]);
    let help = process::coordinator(&["--help"], DEADLINE);
    assert!(help.status.success() && help.stdout.contains("serve"), "{help:?}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ran =
        process::coordinator(&["serve", &default_model(), "--port", &port, "--listen", "127.0.0.1:0"], super::PULLING);
    one_line(&ran, 1, &[&port, "in use"]);
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ran = process::coordinator(&["serve", &default_model(), "--port", "0", "--listen", &address], super::PULLING);
    one_line(&ran, 1, &[&address, "in use"]);
}

#[test]
fn no_room_for_the_model_is_said_before_anything_loads() {
    let ran = process::coordinator(&["plan", &default_model(), "--workers", "2", "--memory", "50MB"], super::PULLING);
    one_line(&ran, 1, &["MB"]);
}

fn serve(folder: &TempDir, port: u16, more: &[&str]) -> (String, Running) {
    let mut command: Command = process::command("coordinator");
    let listen = format!("127.0.0.1:{port}");
    command.args(["serve", &default_model(), "--port", "0", "--listen", &listen, "--ctx-size", "512"]).args(more);
    command.env("XDG_DATA_HOME", folder.path());
    let mut running = Running::start(command);
    let ticket = running.wait_for(super::PULLING, "the join line", |line| {
        line.trim().strip_prefix("shard-worker join ").map(str::to_owned)
    });
    (ticket, running)
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn join(ticket: &str) -> Output {
    let mut command = process::command("shard-worker");
    command.args(["join", ticket, "--once"]);
    process::finish(Running::start(command), Duration::from_secs(40))
}

/// Asserts that a command failed with this code and said these words, without a panic or a page of text.
fn one_line(ran: &Output, code: i32, words: &[&str]) {
    assert_eq!(ran.status.code(), Some(code), "{ran:?}");
    let lines: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "one error line: {}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "`{word}` is missing: {}", ran.stderr);
    }
    assert!(ran.stderr.lines().count() <= 6 && !ran.stderr.contains("panicked"), "{}", ran.stderr);
}

const DEADLINE: Duration = Duration::from_secs(30);
