//! Workers find their coordinator on the local network, and people see which ones are there.

use qmesh_tests::process;

use super::{STARTING, Serving};

/// An address of documentation (RFC 5737): nobody answers there.
const MOVED: &str = "203.0.113.9:4433";

#[test]
fn a_coordinator_that_has_moved_is_found_on_the_local_network() {
    let serving = Serving::start(&["--listen", "0.0.0.0:0", "--advertise", MOVED]);
    let start = std::time::Instant::now();
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
