//! Workers in homes behind NATs, with a coordinator on the internet: who reaches whom how, and what packets really do.

mod dht;
mod lab;
mod moves;
mod ports;
mod rendezvous;
mod sharing;

use qmesh_tests::{
    golden_file, http, models_page,
    process::{self, Running},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Serving, number, worker_by};
use lab::{Home, Host, Lab, Nat};

/// Two workers, where they are, and what their homes' routers count.
struct Scene {
    lab: Lab,
    coordinator: Host,
    workers: [Host; 2],
    homes: Vec<Home>,
}

/// What came of a scene.
struct Played {
    text: String,
    /// Of the link between the two workers: `direct` or `relayed`.
    passage: String,
    /// Bytes that the coordinator passed on for the answer.
    relayed: u64,
    /// Bytes that went from home to home for the answer.
    between_homes: u64,
}

#[test]
fn behind_two_nats_packets_go_straight_where_the_nats_allow_it() {
    let pairs = [
        ("keeps ports", "keeps ports", Nat::Keeps, Nat::Keeps),
        ("keeps ports", "random ports", Nat::Keeps, Nat::Random),
        ("random ports", "random ports", Nat::Random, Nat::Random),
        ("open", "random ports", Nat::Open, Nat::Random),
        ("random ports", "open", Nat::Random, Nat::Open),
    ];
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    for (name, other, first, second) in pairs {
        let Some(scene) = two_homes(first, second) else { return };
        let played = play(scene);
        // Each stage of this model hands on 256 bytes for every token.
        match played.passage.as_str() {
            "direct" => assert!(played.between_homes > 16 * 256 && played.relayed == 0, "{name}, {other}"),
            _ => assert!(played.relayed > 16 * 256 && played.between_homes < 1000, "{name}, {other}"),
        }
        rows.push(format!("| {name} | {other} | {} |", played.passage));
        texts.push(played.text);
    }
    let Some(scene) = behind_a_second_router() else { return };
    let played = play(scene);
    assert!(played.between_homes > 16 * 256 && played.relayed == 0, "{}", played.between_homes);
    rows.push(format!("| keeps ports, inside a home whose router does too | keeps ports | {} |", played.passage));
    texts.push(played.text);
    let Some(scene) = one_home() else { return };
    let played = play(scene);
    assert!(played.relayed == 0 && played.between_homes == 0);
    rows.push(format!("| keeps ports | the same home | {} |", played.passage));
    texts.push(played.text);

    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    let table = ["| one worker behind | the other behind | their link |", "|---|---|---|"];
    let lines: Vec<&str> = table.into_iter().chain(rows.iter().map(String::as_str)).collect();
    models_page::check_in("docs/network.md", "pairs of NATs", &(lines.join("\n") + "\n"));
}

#[test]
fn without_a_relay_workers_that_cannot_meet_are_no_neighbours_and_the_reason_is_told() {
    let Some(Scene { mut lab, coordinator, workers, homes }) = two_homes(Nat::Random, Nat::Random) else { return };
    let (serving, _model) = serve(&mut lab, &coordinator, &["--no-relay"]);
    let _workers = join(&serving, &workers);
    let said = loop {
        let status = http::get(&serving.path("/api/status")).body;
        let notes = status["workers"].as_array().cloned().unwrap_or_default();
        let note = notes.iter().find_map(|worker| worker["note"].as_str().filter(|note| note.contains("cannot reach")));
        if let Some(note) = note {
            break note.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    };
    assert!(said.contains("no answer"), "{said}");
    let both =
        ["first", "second"].map(|name| format!("{name} is behind a NAT that has another port for every destination"));
    assert!(both.iter().all(|nat| said.contains(nat)), "{said}");
    assert!(homes.iter().any(|home| homes.iter().any(|other| home.sent_to(&other.address) > 0)), "nobody tried");
}

#[test]
fn a_doctor_hears_from_the_coordinator_whether_others_reach_it() {
    let kinds = [
        (Nat::Keeps, "ok", "the same port for every destination"),
        (Nat::Random, "warn", "another port for every destination"),
        (Nat::Open, "ok", "lets everybody in"),
    ];
    for (nat, verdict, text) in kinds {
        let Some(Scene { mut lab, coordinator, workers, .. }) = two_homes(nat, Nat::Keeps) else { return };
        let (serving, _model) = serve(&mut lab, &coordinator, &[]);
        let mut doctor = workers[0].command("shard-worker");
        doctor.args(["doctor", &serving.ticket, "--json"]).env("QMESH_CACHE", serving.folder.path());
        let said = process::finish(Running::start(doctor), super::STARTING);
        let said: Value = serde_json::from_str(&said.stdout).unwrap();
        let checks = said["checks"].as_array().unwrap();
        let others = checks.iter().find(|check| check["check"] == "reached by others").unwrap();
        assert_eq!(others["verdict"], verdict, "{others}");
        assert!(others["found"].as_str().unwrap().contains(text), "{others}");
    }
}

fn two_homes(first: Nat, second: Nat) -> Option<Scene> {
    let mut lab = Lab::new()?;
    let coordinator = lab.host(10);
    let mut homes = vec![lab.home(1, first), lab.home(2, second)];
    let workers = [lab.inside(&mut homes[0]), lab.inside(&mut homes[1])];
    Some(Scene { lab, coordinator, workers, homes })
}

fn behind_a_second_router() -> Option<Scene> {
    let mut lab = Lab::new()?;
    let coordinator = lab.host(10);
    let mut homes = vec![lab.home(1, Nat::Keeps), lab.home(2, Nat::Keeps)];
    let mut inner = lab.home_inside(&mut homes[0], Nat::Keeps);
    let workers = [lab.inside(&mut inner), lab.inside(&mut homes[1])];
    Some(Scene { lab, coordinator, workers, homes })
}

fn one_home() -> Option<Scene> {
    let mut lab = Lab::new()?;
    let coordinator = lab.host(10);
    let mut homes = vec![lab.home(1, Nat::Keeps)];
    let workers = [lab.inside(&mut homes[0]), lab.inside(&mut homes[0])];
    Some(Scene { lab, coordinator, workers, homes })
}

/// A mesh in the scene answers a question.
fn play(mut scene: Scene) -> Played {
    let (serving, _model) = serve(&mut scene.lab, &scene.coordinator, &[]);
    let _workers = join(&serving, &scene.workers);
    serving.wait_ready(2);
    let status = || http::get(&serving.path("/api/status")).body;
    let sent = |from: &Home| scene.homes.iter().map(|to| from.sent_to(&to.address)).sum::<u64>();
    let between = || scene.homes.iter().map(sent).sum::<u64>();
    let (before, between_before) = (status(), between());
    let request = json!({ "model": "words", "prompt": "w5 w6", "max_tokens": 16, "temperature": 0 });
    let answer = http::post(&serving.path("/v1/completions"), &request);
    assert_eq!((answer.status, number(&answer.body["usage"], "completion_tokens")), (200, 16), "{}", answer.body);
    // The status is as old as its last publication.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let after = status();
    let links: Vec<&Value> = after["stages"].as_array().unwrap().iter().map(|stage| &stage["link"]).collect();
    assert!(links[1].is_null(), "{links:?}");
    Played {
        text: answer.body["choices"][0]["text"].as_str().unwrap().to_owned(),
        passage: links[0]["passage"].as_str().unwrap().to_owned(),
        relayed: number(&after, "relayed_bytes") - number(&before, "relayed_bytes"),
        between_homes: between() - between_before,
    }
}

/// A coordinator at 198.51.100.10, whose API this test reaches, and the folder of its model.
fn serve(lab: &mut Lab, host: &Host, more: &[&str]) -> (Serving, TempDir) {
    // The first worker dials the second one.
    let pins = ["--pin", "first=0-0", "--pin", "second=1-2"];
    let always = ["--listen", "198.51.100.10:4433", "--min-workers", "2"];
    let pins = if more.is_empty() { &pins[..] } else { &[] };
    serve_at(lab, host, &[&always[..], pins, more].concat())
}

/// A coordinator anywhere, whose API this test reaches, and the folder of its model.
fn serve_at(lab: &mut Lab, host: &Host, more: &[&str]) -> (Serving, TempDir) {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("words.gguf");
    super::experts::with_words(&golden_file("tiny/mixtral.gguf"), &model);
    let api = lab.cable(host);
    let arguments = [&["--allow-host", &api, "--no-mdns"][..], more].concat();
    let mut serving = Serving::start_by(host.command("coordinator"), "1", &model.to_string_lossy(), 256, &arguments);
    serving.url = serving.url.replace("127.0.0.1", &api);
    (serving, folder)
}

/// Two workers that joined one after the other.
fn join(serving: &Serving, hosts: &[Host; 2]) -> Vec<Running> {
    let names = ["first", "second"];
    let joined = hosts.iter().zip(names).map(|(host, name)| {
        let command = host.command("shard-worker");
        let mut worker = worker_by(command, &serving.ticket, name, serving.folder.path(), &["--no-mdns"]);
        worker.wait_for(super::STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
        worker
    });
    joined.collect()
}
