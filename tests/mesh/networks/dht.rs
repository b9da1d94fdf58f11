//! A coordinator and a worker behind two NATs, and nobody else of their mesh: they meet by the DHT.

use std::{net::Ipv4Addr, time::Instant};

use mainline::Testnet;
use qmesh_tests::http;

use super::{
    super::{STARTING, worker_by},
    lab::{Lab, Nat},
    serve_at,
};

#[test]
fn two_behind_nats_meet_by_the_dht_alone() {
    let Some(mut lab) = Lab::new() else { return };
    let nodes = lab.host(30);
    let dht = nodes.inside(|| {
        let mut builder = Testnet::builder(10);
        builder.bind_address(Ipv4Addr::new(198, 51, 100, 30)).build().unwrap()
    });
    let bootstrap = dht.bootstrap.join(",");
    let mut homes = [lab.home(1, Nat::Keeps), lab.home(2, Nat::Keeps)];
    let [coordinator, worker] = homes.each_mut().map(|home| lab.inside(home));
    let at = ["--listen", "0.0.0.0:4433", "--dht", "--dht-bootstrap", &bootstrap];
    let (serving, _model) = serve_at(&mut lab, &coordinator, &at);
    let start = Instant::now();
    let looks = ["--no-mdns", "--dht", "--dht-bootstrap", &bootstrap];
    let command = worker.command("shard-worker");
    let mut joining = worker_by(command, &serving.ticket, "attic", serving.folder.path(), &looks);
    let said = joining.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then(|| line.to_owned()));
    println!("{said}: {:?} after its start", start.elapsed());
    serving.wait_ready(1);
    let status = http::get(&serving.path("/api/status")).body;
    assert_eq!(status["workers"][0]["found"]["by"], "dht", "{status}");
    assert!(homes[0].sent_to(&homes[1].address) > 1000, "straight from home to home");
    drop(dht);
}
