//! A coordinator that nobody reaches by itself, as it is behind a NAT, and the one worker that everybody reaches.

use qmesh_tests::{
    http, models_page,
    process::{self, Running},
};
use serde_json::{Value, json};

use super::{
    super::{STARTING, Serving, number, worker_by},
    lab::{Home, Host, Lab, Nat},
    serve_at,
};

/// Where the worker is that everybody reaches.
const RENDEZVOUS: &str = "198.51.100.20:4434";

/// A coordinator at home, a rendezvous on the internet, and other workers in homes of their own.
struct Scene {
    lab: Lab,
    coordinator: Host,
    rendezvous: Host,
    others: Vec<Host>,
    homes: Vec<Home>,
}

/// What came of a scene.
struct Played {
    text: String,
    /// How each worker has found the coordinator.
    found: Vec<String>,
    /// Of the links between the stages.
    links: Vec<String>,
    /// Bytes that went from home to home for the answer.
    between_homes: u64,
}

#[test]
fn a_coordinator_behind_a_nat_serves_by_way_of_one_worker_that_all_reach() {
    let pairs = [
        ("keeps ports", "keeps ports", Nat::Keeps, Nat::Keeps),
        ("keeps ports", "random ports", Nat::Keeps, Nat::Random),
        ("random ports", "keeps ports", Nat::Random, Nat::Keeps),
        ("random ports", "random ports", Nat::Random, Nat::Random),
        ("random ports", "open", Nat::Random, Nat::Open),
    ];
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    for (name, other, at_home, elsewhere) in pairs {
        let Some(scene) = scene(at_home, &[elsewhere]) else { return };
        let played = play(scene, &["first=0-0", "second=1-2"], 0);
        assert_eq!(played.found[0], "call", "{name}, {other}");
        assert_eq!(played.links, ["direct"], "everybody reaches the rendezvous, and is reached by it: {name}, {other}");
        let passage = match played.found[1].as_str() {
            "rendezvous" => "direct",
            "relay" => "relayed",
            other => panic!("{other}"),
        };
        let went_straight = played.between_homes > 1000;
        assert_eq!(went_straight, passage == "direct", "{name}, {other}: {} bytes", played.between_homes);
        rows.push(format!("| {name} | {other} | {passage} |"));
        texts.push(played.text);
    }
    // The rendezvous passes on what two other workers send each other, too.
    let Some(three) = scene(Nat::Random, &[Nat::Random, Nat::Random]) else { return };
    let played = play(three, &["first=2-2", "second=0-0", "third=1-1"], 0);
    assert_eq!(
        (&played.found[1..], &played.links[..]),
        (&["relay".into(), "relay".into()][..], &["relayed".into(), "direct".into()][..])
    );
    assert!(played.between_homes < 1000, "{}", played.between_homes);
    texts.push(played.text);
    // And so it does for a worker beside the coordinator.
    let Some(with_one_beside) = scene(Nat::Keeps, &[Nat::Random]) else { return };
    let played = play(with_one_beside, &["local-1=0-0", "second=1-1", "first=2-2"], 1);
    assert_eq!(played.links, ["relayed", "direct"]);
    texts.push(played.text);

    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    let table = ["| coordinator behind | worker behind | their connection |", "|---|---|---|"];
    let lines: Vec<&str> = table.into_iter().chain(rows.iter().map(String::as_str)).collect();
    models_page::check_in("docs/network.md", "pairs of NATs with a rendezvous", &(lines.join("\n") + "\n"));
}

#[test]
fn what_a_rendezvous_cannot_do_is_told() {
    let Some(Scene { mut lab, coordinator, others, .. }) = scene(Nat::Keeps, &[Nat::Keeps]) else { return };
    let (serving, _model) = hidden(&mut lab, &coordinator, &[], (1, 0));
    let once = ["--no-mdns", "--once"];
    let lost = worker_by(others[0].command("shard-worker"), &serving.ticket, "lost", serving.folder.path(), &once);
    let lost = process::finish(lost, STARTING);
    let text = format!("the rendezvous {RENDEZVOUS}: no answer, or it has no link to the coordinator");
    assert!(lost.status.code() == Some(1) && lost.stderr.contains(&text), "{}", lost.stderr);
}

fn scene(at_home: Nat, elsewhere: &[Nat]) -> Option<Scene> {
    let mut lab = Lab::new()?;
    let rendezvous = lab.host(20);
    let nats: Vec<Nat> = [&[at_home][..], elsewhere].concat();
    let mut homes: Vec<Home> = (1..).zip(nats).map(|(number, nat)| lab.home(number, nat)).collect();
    let mut inside: Vec<Host> = homes.iter_mut().map(|home| lab.inside(home)).collect();
    let others = inside.split_off(1);
    Some(Scene { lab, coordinator: inside.remove(0), rendezvous, others, homes })
}

/// A coordinator that knows the rendezvous.
fn hidden(
    lab: &mut Lab,
    host: &Host,
    pins: &[&str],
    (workers, beside): (usize, usize),
) -> (Serving, tempfile::TempDir) {
    let (workers, beside) = (workers.to_string(), beside.to_string());
    let counts = ["--min-workers", &workers, "--local-workers", &beside, "--threads", "1"];
    let always = [&["--listen", "0.0.0.0:4433", "--rendezvous", RENDEZVOUS][..], &counts].concat();
    let pins = pins.iter().flat_map(|pin| ["--pin", pin]);
    serve_at(lab, host, &always.into_iter().chain(pins).collect::<Vec<_>>())
}

/// A mesh in the scene, with so many workers beside the coordinator, answers a question.
fn play(mut scene: Scene, pins: &[&str], beside: usize) -> Played {
    let count = 1 + scene.others.len() + beside;
    let (serving, _model) = hidden(&mut scene.lab, &scene.coordinator, pins, (count, beside));
    let hosts = [&scene.rendezvous].into_iter().chain(&scene.others);
    let listen = |number| if number == 0 { &["--listen", "0.0.0.0:4434"][..] } else { &[] };
    let join = |(number, (host, name)): (usize, (&Host, &str))| {
        let more = [&["--no-mdns"][..], listen(number)].concat();
        let mut worker = worker_by(host.command("shard-worker"), &serving.ticket, name, serving.folder.path(), &more);
        worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
        worker
    };
    let _workers: Vec<Running> = hosts.zip(["first", "second", "third"]).enumerate().map(join).collect();
    serving.wait_ready(count);
    let sent = |from: &Home| scene.homes.iter().map(|to| from.sent_to(&to.address)).sum::<u64>();
    let between = || scene.homes.iter().map(sent).sum::<u64>();
    let before = between();
    let request = json!({ "model": "words", "prompt": "w5 w6", "max_tokens": 16, "temperature": 0 });
    let answer = http::post(&serving.path("/v1/completions"), &request);
    assert_eq!((answer.status, number(&answer.body["usage"], "completion_tokens")), (200, 16), "{}", answer.body);
    let between_homes = between() - before;
    let status = http::get(&serving.path("/api/status")).body;
    let texts = |list: &str, pick: fn(&Value) -> &Value| -> Vec<String> {
        let all = status[list].as_array().unwrap().iter().map(pick);
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Played {
        text: answer.body["choices"][0]["text"].as_str().unwrap().to_owned(),
        found: texts("workers", |worker| &worker["found"]["by"]),
        links: texts("stages", |stage| &stage["link"]["passage"]),
        between_homes,
    }
}
