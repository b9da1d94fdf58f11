//! Open meshes: workers without a ticket ask, somebody admits them, and what was decided holds.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use qmesh_discovery::mark_of;
use qmesh_net::Ticket;
use qmesh_tests::{
    default_model, http,
    process::{self, Running},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    STARTING, Serving,
    doors::{coordinator, coordinator_of},
    number,
    survival::stream,
};

const OPEN: [&str; 3] = ["--open", "--listen", "0.0.0.0:0"];

#[test]
fn an_admitted_worker_comes_back_without_a_question_until_it_is_revoked() {
    let mut serving = Serving::start(&[&OPEN[..], &["--min-workers", "2"]].concat());
    let _steady = [serving.join("one", &[]), serving.join("two", &[])];
    let home = TempDir::new().unwrap();
    let mut attic = ask(&serving, "attic", home.path());
    let code = code_of(&mut attic);
    let shown =
        serving.coordinator.wait_for(STARTING, "who asks", |line| line.contains("attic at ").then(|| line.to_owned()));
    assert!(shown.contains(&code), "{shown} is not about {code}");
    serving
        .coordinator
        .wait_for(STARTING, "what to type", |line| line.contains("coordinator admit attic").then_some(()));
    let admitted = coordinator(&serving, &["admit", &code.to_uppercase()]);
    assert!(admitted.status.success() && admitted.stdout.starts_with("attic is admitted"), "{admitted:?}");
    let joined = joined(&mut attic);
    assert!(joined.contains(" as attic "), "{joined}");
    serving.wait_ready(3);
    let undisturbed = stream(&serving, |_| {});

    // Again, and nobody is asked.
    attic.signal("TERM");
    assert_eq!(process::finish(attic, STARTING).status.code(), Some(0));
    let start = Instant::now();
    let mut attic = ask(&serving, "attic", home.path());
    self::joined(&mut attic);
    println!("back {:?} after its start", start.elapsed());
    assert!(!attic.said().contains("code"), "it was asked for: {}", attic.said());
    serving.wait_ready(3);
    let (listed, entry) = (list(&serving), |list: &Value, name: &str| {
        list["workers"].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
    });
    let (known, guest) = (entry(&listed, "attic"), entry(&listed, "one"));
    assert_eq!((&known["by"], &known["here"]), (&"key".into(), &true.into()), "{listed}");
    assert_eq!((&guest["by"], &guest["here"]), (&"ticket".into(), &true.into()), "{listed}");
    assert!(number(&known, "since_unix") > 0 && listed["asking"] == Value::Array(vec![]), "{listed}");

    // In the middle of an answer.
    let mut revoked = None;
    let text = stream(&serving, |pieces| {
        if pieces == 20 {
            revoked = Some(coordinator(&serving, &["workers", "revoke", "attic"]));
        }
    });
    assert_eq!(text, undisturbed, "the same text, with a worker sent away in between");
    assert!(revoked.is_some_and(|revoked| revoked.status.success()));
    let gone = process::finish(attic, STARTING);
    assert_eq!(gone.status.code(), Some(2), "{gone:?}");
    assert!(gone.stderr.contains("sent away: whoever runs the coordinator has revoked the key"), "{}", gone.stderr);
    // Neither its key nor a ticket brings it back.
    let back = process::finish(ask(&serving, "attic", home.path()), STARTING);
    assert!(back.status.code() == Some(2) && back.stderr.contains("was revoked"), "{back:?}");
    let ticket = process::finish(super::worker(&serving.ticket, "attic", home.path(), &[]), STARTING);
    assert!(ticket.status.code() == Some(2) && ticket.stderr.contains("was revoked"), "{ticket:?}");
    assert!(coordinator(&serving, &["workers", "ls"]).stdout.contains("nothing: revoked"));
    // A stranger again, which the ticket lets in.
    assert!(coordinator(&serving, &["workers", "forget", "attic"]).status.success());
    self::joined(&mut super::worker(&serving.ticket, "attic", home.path(), &[]));
}

#[test]
fn admission_outlives_the_coordinator_and_needs_no_open_mesh() {
    let serving = Serving::start(&[&OPEN[..], &["--min-workers", "1"]].concat());
    let home = TempDir::new().unwrap();
    let mut attic = ask(&serving, "attic", home.path());
    let code = code_of(&mut attic);
    assert!(coordinator(&serving, &["admit", &code]).status.success());
    joined(&mut attic);
    serving.coordinator.signal("TERM");
    attic.wait_for(STARTING, "the loss", |line| line.contains("retrying").then_some(()));
    // Another port, and nobody may ask: it is found by its key, and knows the worker.
    let again = serve_again(serving.folder.path(), &["--listen", "0.0.0.0:0"]);
    joined(&mut attic);
    let stranger = TempDir::new().unwrap();
    fs::create_dir_all(stranger.path().join("qmesh")).unwrap();
    let remembered = home.path().join("qmesh/worker-attic.mesh");
    fs::copy(&remembered, stranger.path().join("qmesh/worker-attic.mesh")).unwrap();
    let refused = process::finish(ask(&serving, "attic", stranger.path()), STARTING);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("this mesh has not admitted this worker"), "{}", refused.stderr);
    drop(again);
    // A book that cannot be read lets nobody in, and says so.
    fs::write(serving.folder.path().join("qmesh/workers.json"), "{\"version\": 1").unwrap();
    let damaged =
        coordinator_of(serving.folder.path(), &["serve", &default_model(), "--port", "0", "--listen", "127.0.0.1:0"]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    assert!(
        damaged.stderr.contains("workers.json does not say") && damaged.stderr.contains("nobody is let in"),
        "{damaged:?}"
    );
}

#[test]
fn a_faked_name_is_told_by_the_code_and_who_is_not_admitted_learns_nothing() {
    let serving = Serving::start(&[&OPEN[..], &["--min-workers", "1"]].concat());
    let homes = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let mut honest = ask(&serving, "attic", homes[0].path());
    let code = code_of(&mut honest);
    let mut fake = ask(&serving, "attic", homes[1].path());
    let other = code_of(&mut fake);
    assert_ne!(code, other);
    let status = http::get(&serving.path("/api/status")).body;
    assert!(status["asking"].as_array().is_some_and(|asking| asking.len() == 2), "{status}");
    assert!(status["asking"].as_array().unwrap().iter().all(|one| one["namesake"] == true), "{status}");
    assert!(status["workers"].as_array().is_some_and(Vec::is_empty), "{status}");
    // Neither the name nor a name without a look at the code is enough.
    let unclear = coordinator(&serving, &["admit", "attic", "--yes"]);
    assert!(
        !unclear.status.success() && unclear.stderr.contains(&code) && unclear.stderr.contains(&other),
        "{unclear:?}"
    );
    let without_key = http::post(&serving.path(&format!("/api/workers/{code}/admit")), &Value::Null);
    assert_eq!(without_key.status, 403, "{without_key:?}");
    assert!(coordinator(&serving, &["admit", &code]).status.success());
    joined(&mut honest);
    serving.wait_ready(1);
    let unseen = coordinator(&serving, &["admit", "attic"]);
    assert!(unseen.status.code() == Some(2) && unseen.stderr.contains("by its code"), "{unseen:?}");
    assert!(coordinator(&serving, &["workers", "refuse", &other]).status.success());
    let refused = process::finish(fake, STARTING);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("does not want this worker") && !refused.stderr.contains("joined"), "{refused:?}");
    let listed = list(&serving);
    assert_eq!(listed["workers"].as_array().map(Vec::len), Some(1), "{listed}");
}

/// A worker without a ticket, whose keys are at `home`.
pub(super) fn ask(serving: &Serving, name: &str, home: &Path) -> Running {
    let ticket: Ticket = serving.ticket.parse().unwrap();
    let mut command = Command::new(process::binaries().join("shard-worker"));
    command.args(["join", "--mesh", &mark_of(ticket.coordinator), "--name", name, "--threads", "1"]);
    command.env("XDG_DATA_HOME", home).env("QMESH_CACHE", home.join("cache")).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command)
}

/// What a worker that asks shows.
pub(super) fn code_of(worker: &mut Running) -> String {
    worker.wait_for(STARTING, "the code", |line| line.trim().strip_prefix("code ").map(|code| code.trim().to_owned()))
}

pub(super) fn joined(worker: &mut Running) -> String {
    worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then(|| line.to_owned()))
}

fn list(serving: &Serving) -> Value {
    let listed = coordinator(serving, &["workers", "ls", "--json"]);
    serde_json::from_str(&listed.stdout).unwrap_or_else(|error| panic!("{error}: {listed:?}"))
}

/// The coordinator of a folder, started again.
fn serve_again(folder: &Path, more: &[&str]) -> Running {
    let mut command = process::command("coordinator");
    command.args(["serve", &default_model(), "--port", "0", "--ctx-size", "1024"]).args(more);
    command.env("XDG_DATA_HOME", folder).env("QMESH_NO_MEASURE", "1");
    let mut running = Running::start(command);
    let patience = Duration::from_secs(300);
    running.wait_for(patience, "the API's address", super::api_address);
    running
}
