//! Routers that open a port where they are asked to.

use qmesh_tests::{
    golden_file,
    process::{self, Running},
};

use tempfile::TempDir;

use super::{
    super::{STARTING, worker_by},
    lab::{Lab, Nat},
    serve_at,
};

#[test]
fn a_coordinator_asks_its_router_for_a_port_and_gives_it_back() {
    for protocol in ["pcp", "nat-pmp"] {
        let Some(mut lab) = Lab::new() else { return };
        let mut home = lab.home(1, Nat::Keeps);
        let mut router = home.opens_ports(protocol);
        let (coordinator, worker) = (lab.inside(&mut home), lab.host(10));
        let asks = ["--listen", "0.0.0.0:4433", "--map-port"];
        let (serving, _model) = serve_at(&mut lab, &coordinator, &asks);
        router.wait_for(STARTING, "the port", |line| (line == "opened 4433").then_some(()));
        let command = worker.command("shard-worker");
        let more = ["--no-mdns"];
        let mut worker = worker_by(command, &serving.ticket, "outside", serving.folder.path(), &more);
        worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
        serving.wait_ready(1);
        serving.coordinator.signal("TERM");
        router.wait_for(STARTING, "the end", |line| (line == "closed").then_some(()));
    }
}

#[test]
fn a_router_that_opens_no_port_is_named() {
    let Some(mut lab) = Lab::new() else { return };
    let mut outer = lab.home(1, Nat::Keeps);
    let mut inner = lab.home_inside(&mut outer, Nat::Keeps);
    let host = lab.inside(&mut inner);
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("words.gguf");
    super::super::experts::with_words(&golden_file("tiny/mixtral.gguf"), &model);
    let refusal = || {
        let mut command = host.command("coordinator");
        command.arg("serve").arg(&model).args(["--port", "0", "--map-port"]);
        let ended = process::finish(Running::start(command), STARTING);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        ended.stderr
    };
    let silent = refusal();
    assert!(silent.contains("opens no port") && silent.contains("--rendezvous"), "{silent}");
    let _router = inner.opens_ports("pcp");
    let behind_another = refusal();
    assert!(behind_another.contains("is itself behind another one"), "{behind_another}");
}
