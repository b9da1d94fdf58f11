//! Who gets in, and who does not: tickets, and connections without one.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use qmesh_tests::{
    http,
    process::{self, Output, Running},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{STARTING, Serving};

#[test]
fn a_status_gives_no_ticket_away_and_the_ticket_command_does() {
    let serving = Serving::start(&["--min-workers", "1"]);
    let secret = &serving.ticket["qmesh1".len()..];
    let status = http::get(&serving.path("/api/status")).body.to_string();
    let printed = coordinator(&serving, &["status", "--url", &serving.url, "--json"]);
    for said in [&status, &first_event(&serving.url), &printed.stdout] {
        assert!(said.contains("waiting") && !said.contains(secret) && !said.contains("qmesh1"), "{said}");
    }

    let join = format!("shard-worker join {}", serving.ticket);
    assert_eq!(coordinator(&serving, &["ticket"]).stdout.trim(), join);
    let listed: Value = serde_json::from_str(&coordinator(&serving, &["ticket", "--json"]).stdout).unwrap();
    assert_eq!((&listed[0]["join"], &listed[0]["model"]), (&join.into(), &super::MODEL.into()), "{listed}");
    // Another port, another user, or a coordinator that was killed.
    let elsewhere = TempDir::new().unwrap();
    let nobody = [coordinator(&serving, &["ticket", "--port", "1"]), coordinator_of(elsewhere.path(), &["ticket"])];
    serving.coordinator.signal("KILL");
    let gone = || coordinator(&serving, &["ticket"]);
    let until = std::time::Instant::now() + STARTING;
    while gone().status.success() {
        assert!(std::time::Instant::now() < until, "a killed coordinator's ticket is shown");
    }
    for none in nobody.iter().chain([&gone()]) {
        assert_eq!((none.status.code(), none.stdout.as_str()), (Some(3), ""), "{none:?}");
        assert!(none.stderr.contains("no coordinator"), "{none:?}");
    }
}

#[test]
fn a_refused_ticket_is_not_repeated() {
    let ticket = "qmesh1aeaqaabcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrstuvwxyz234567";
    let capitals = ticket.to_uppercase();
    let (first, second) = ticket.split_at(40);
    for words in [
        &["join", ticket][..],
        &["join", &capitals],
        &["join", first, second],
        &["join", "--name", ticket, "qmesh1a"],
        &[ticket],
    ] {
        let mut command = process::command("shard-worker");
        command.args(words);
        let refused = process::finish(Running::start(command), STARTING);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        let said = (refused.stdout + &refused.stderr).to_lowercase();
        assert!(said.contains("error: ") && !said.contains(&ticket[6..14]) && !said.contains(second), "{said}");
    }
    let mut command = process::command("coordinator");
    command.arg(ticket);
    let refused = process::finish(Running::start(command), STARTING);
    assert!(!(refused.stdout + &refused.stderr).contains(&ticket[6..14]));
}

#[cfg(target_os = "linux")]
#[test]
fn strangers_cost_little_and_keep_no_worker_out() {
    let serving = Serving::start(&["--min-workers", "1"]);
    let before = resident_bytes(&serving);
    let strangers = if super::soak() { 1000 } else { 200 };
    let crowd = strangers::Crowd::gather(&serving.ticket, strangers);
    let grown = resident_bytes(&serving).saturating_sub(before);
    assert!(grown < 64 << 20, "{strangers} connections without a ticket cost {grown} bytes");
    let start = std::time::Instant::now();
    let mut worker = serving.join("late", &[]);
    worker.wait_for(STARTING, "the welcome", |line| line.contains("joined ").then_some(()));
    println!("joined after {:?}, beside {strangers} strangers that cost {grown} bytes", start.elapsed());
    drop(crowd);
}

#[cfg(target_os = "linux")]
fn resident_bytes(serving: &Serving) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.coordinator.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Peers that connect without a ticket, and stay for as long as they are let.
#[cfg(target_os = "linux")]
mod strangers {
    use std::{net::IpAddr, sync::Arc, time::Duration};

    use qmesh_net::{Admission, Connection, Endpoint, Identity, Message, NetError, Ticket};
    use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet, time::timeout};

    /// Dropping it ends them all.
    pub(super) struct Crowd {
        _runtime: Runtime,
        _strangers: JoinSet<()>,
    }

    impl Crowd {
        /// Half of them from one address, the others from one each; returns when each has tried to get in.
        pub(super) fn gather(ticket: &str, count: usize) -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let ticket: Arc<Ticket> = Arc::new(ticket.parse().unwrap());
            let tried = Arc::new(Semaphore::new(0));
            let mut strangers = JoinSet::new();
            let crowded = runtime.block_on(async { endpoint([127, 0, 0, 1].into()) });
            for i in 0..count {
                let (ticket, tried, crowded) = (Arc::clone(&ticket), Arc::clone(&tried), crowded.clone());
                let own = [127, 0, 1 + (i / 250) as u8, 2 + (i % 250) as u8].into();
                let stranger = async move {
                    let endpoint = if i % 2 == 0 { crowded } else { endpoint(own) };
                    let connection = endpoint.dial(&ticket.addresses, ticket.coordinator).await;
                    tried.add_permits(1);
                    if let Ok(connection) = connection {
                        push(&connection).await.ok();
                        connection.closed().await;
                    }
                };
                strangers.spawn_on(stranger, runtime.handle());
            }
            let all = tried.acquire_many(u32::try_from(count).unwrap());
            let all = runtime.block_on(async { timeout(Duration::from_secs(60), all).await.map(drop) });
            all.expect("each stranger is let in or refused");
            Self { _runtime: runtime, _strangers: strangers }
        }
    }

    fn endpoint(address: IpAddr) -> Endpoint {
        Endpoint::bind((address, 0).into(), &Identity::ephemeral(), Admission::only([])).unwrap()
    }

    /// Sends as much as it may, short of a hello.
    async fn push(connection: &Connection) -> Result<(), NetError> {
        let (mut sender, _receiver) = connection.open_control().await?;
        sender.send(&Message::Bye { text: "x".repeat(1_000_000) }).await
    }
}

/// The first event of `/api/events`.
fn first_event(url: &str) -> String {
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET /api/events HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.into_iter().find(|line| line.starts_with("data: ")).expect("an event")
}

pub(super) fn coordinator(serving: &Serving, arguments: &[&str]) -> Output {
    coordinator_of(serving.folder.path(), arguments)
}

pub(super) fn coordinator_of(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = process::command("coordinator");
    command.args(arguments).env("XDG_DATA_HOME", folder);
    process::finish(Running::start(command), STARTING)
}
