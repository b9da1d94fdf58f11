//! Workers find their coordinator on the local network, and people see which ones are there.

use std::{path::Path, time::Instant};

use mainline::Testnet;
use qmesh_tests::{
    http,
    process::{self, Running},
};
use tempfile::TempDir;

use super::{PULLING, STARTING, Serving, api_address, default_model, first_word, number, worker};

/// An address of documentation (RFC 5737): nobody answers there.
const MOVED: &str = "203.0.113.9:4433";

#[test]
fn a_coordinator_that_has_moved_is_found_on_the_local_network() {
    let serving = Serving::start(&["--listen", "0.0.0.0:0", "--advertise", MOVED]);
    let start = Instant::now();
    let mut worker = serving.join("finder", &[]);
    let said = worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then(|| line.to_owned()));
    assert!(said.contains("found on the local network"), "{said}");
    println!("{said}: {:?} after its start", start.elapsed());
    serving.wait_ready(1);

    let listed = process::coordinator(&["discover", "--json", "--timeout", "2s"], STARTING);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
    assert!(
        listed.as_array().is_some_and(|all| all.iter().any(|one| one["model"] == super::MODEL && one["open"] == false)),
        "{listed}"
    );
}

#[test]
fn whoever_shall_not_ask_the_network_does_not() {
    let serving = Serving::start(&["--listen", "0.0.0.0:0", "--advertise", MOVED, "--no-mdns"]);
    for more in [&["--once"][..], &["--once", "--no-mdns"]] {
        let lost = process::finish(serving.join("lost", more), STARTING);
        let asked = lost.stderr.contains("nor does it answer on the local network");
        assert_eq!((lost.status.code(), asked), (Some(1), more.len() == 1), "{}", lost.stderr);
    }
}

#[test]
fn a_coordinator_of_another_network_is_found_on_the_dht() {
    let dht = Testnet::builder(10).build().unwrap();
    let nodes = dht.bootstrap.join(",");
    let folder = TempDir::new().unwrap();
    let (ticket, url, coordinator) = serve_elsewhere(folder.path(), &nodes);
    let looks = ["--no-mdns", "--dht", "--dht-bootstrap", &nodes];
    let join = || (Instant::now(), worker(&ticket, "far", folder.path(), &looks));

    let (start, mut far) = join();
    let cold = (joined(&mut far), start.elapsed());
    assert!(cold.0.contains("found on the DHT"), "{}", cold.0);
    let status = http::get(&format!("{url}/api/status")).body;
    assert_eq!(status["workers"][0]["found"]["by"], "dht", "{status}");

    drop(far);
    let (start, mut far) = join();
    let remembered = (joined(&mut far), start.elapsed());
    assert!(!remembered.0.contains("found on"), "it remembers where it was: {}", remembered.0);

    // The worker finds it twice more: by then it knows nodes of the DHT.
    let mut warm = 0;
    let mut here = coordinator;
    for _ in 0..2 {
        drop(here);
        let (_, url, moved) = serve_elsewhere(folder.path(), &nodes);
        let said = joined(&mut far);
        assert!(said.contains("found on the DHT"), "{said}");
        warm = number(&http::get(&format!("{url}/api/status")).body["workers"][0]["found"], "ms");
        here = moved;
    }
    println!("cold: {cold:?}\nremembered: {remembered:?}\nby a look-up after it has moved again: {warm} ms");
}

#[test]
fn who_is_not_on_the_dht_is_not_found_and_the_reason_is_told() {
    let dht = Testnet::builder(10).build().unwrap();
    let nodes = dht.bootstrap.join(",");
    let serving = Serving::start(&["--listen", "0.0.0.0:0", "--advertise", MOVED, "--no-mdns"]);
    let lost = |nodes: &str| {
        let worker = serving.join("lost", &["--once", "--no-mdns", "--dht", "--dht-bootstrap", nodes]);
        let lost = process::finish(worker, STARTING);
        assert_eq!(lost.status.code(), Some(1), "{}", lost.stderr);
        lost.stderr
    };
    let nobody = lost(&nodes);
    assert!(nobody.contains("nor does the DHT know of it (coordinator serve --dht)"), "{nobody}");
    let silent = lost("127.0.0.1:1");
    assert!(silent.contains("no node of the DHT answers"), "{silent}");
}

/// A coordinator that is at an address of nobody by its ticket; its port is another one each time. With the ticket and the API's address.
fn serve_elsewhere(folder: &Path, nodes: &str) -> (String, String, Running) {
    let mut command = process::command("coordinator");
    command.args(["serve", &default_model(), "--port", "0", "--listen", "0.0.0.0:0", "--advertise", MOVED]);
    command.args(["--ctx-size", "512", "--no-mdns", "--dht", "--dht-bootstrap", nodes]).env("XDG_DATA_HOME", folder);
    let mut coordinator = Running::start(command);
    let ticket = coordinator.wait_for(PULLING, "the join line", |line| {
        let rest = line.trim().strip_prefix("shard-worker join ")?;
        assert!(rest.ends_with(&format!(" --dht --dht-bootstrap {nodes}")), "what is pasted finds it: {line}");
        Some(first_word(rest).to_owned())
    });
    let url = coordinator.wait_for(STARTING, "the API's address", api_address);
    let known = |line: &str| line.contains("the DHT knows where this coordinator is").then_some(());
    coordinator.wait_for(STARTING, "the record", known);
    (ticket, url, coordinator)
}

fn joined(worker: &mut Running) -> String {
    worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then(|| line.to_owned()))
}
