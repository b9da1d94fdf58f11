//! Whole connections: on the network in memory, under a paused clock, and once over real UDP.

use std::{future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    Admission, Claim, CloseCode, Connection, Endpoint, Frame, FrameKind, FrameReceiver, Gate, Hello, Identity,
    Incoming, Introduction, JoinSecret, KnownPeers, Message, NetError, PlanEpoch, RangeRequest, RejectCode, Right,
    SectionError, Sections, Segment, SessionId, StepId, StepTimes, Strangers, Trail, Wants, Welcome, join,
    limits::{ASKING_TIME, DOOR_PER_ADDRESS, PROTOCOL},
    memory::{Faults, Network, Packets},
    welcome,
};

mod asking;
mod sections;

use self::sections::sections;

/// Chances for tests, repeatable.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    /// Changes a few bytes, or cuts, or extends.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.push(self.below(256) as u8),
                2..=4 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << self.below(8)),
                5 => bytes.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0xff),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = self.below(256) as u8),
            }
        }
    }
}

fn simulate<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(work)
}

/// Two endpoints that know each other: the coordinator's, which anyone may dial, and a worker's.
fn pair(network: &Network) -> (Endpoint, Endpoint) {
    let coordinator = network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap();
    let worker = network.endpoint(&Identity::ephemeral(), Admission::only([coordinator.peer_id()])).unwrap();
    (coordinator, worker)
}

fn addresses(address: SocketAddr) -> Vec<String> {
    vec![address.to_string()]
}

/// The worker's end, then the coordinator's, which trusts it.
async fn connect(coordinator: &Endpoint, worker: &Endpoint) -> (Connection, Connection) {
    let (near, far) = knock(coordinator, worker).await;
    far.trust();
    (near, far)
}

/// The same, before the worker has proved anything.
async fn knock(coordinator: &Endpoint, worker: &Endpoint) -> (Connection, Connection) {
    let address = addresses(coordinator.local_addr());
    let (dialled, accepted) = tokio::join!(worker.dial(&address, coordinator.peer_id()), coordinator.accept());
    (dialled.unwrap(), accepted.unwrap())
}

fn gate() -> Gate {
    Gate {
        secret: JoinSecret::random(),
        expires_unix: None,
        known: KnownPeers::default(),
        strangers: Strangers::NeedTickets,
        numerics: String::new(),
    }
}

fn frame(step: u32, rows: u32) -> Frame {
    let segment =
        Segment { session: SessionId(1), position: step, rows, wants: Wants::Last, trail: Trail(step.into()) };
    Frame {
        kind: FrameKind::Hidden,
        epoch: PlanEpoch(1),
        step: StepId(step),
        width: 512,
        times: StepTimes::default(),
        segments: vec![segment],
        ids: vec![step; rows as usize],
        payload: (0..rows * 2048).map(|i| (i + step) as u8).collect::<Vec<_>>().into(),
        sections: Sections::default(),
    }
}

async fn next_link(connection: &Connection) -> FrameReceiver {
    match connection.accept_stream().await.unwrap() {
        Incoming::Frames(frames) => frames,
        other @ (Incoming::Range(_) | Incoming::Reading(_)) => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_joins_by_ticket_and_later_by_key() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(1));
        let mut gate = gate();
        let secret = gate.secret.clone();
        for round in 0..2 {
            let (near, far) = knock(&coordinator, &worker).await;
            assert_eq!((near.peer(), far.peer()), (coordinator.peer_id(), worker.peer_id()));
            assert_eq!(near.exporter(), far.exporter());
            let me = Introduction { name: "w".into(), threads: 2, ..Introduction::default() };
            let answer = Welcome { mesh: "m".into(), assigned_name: format!("w{round}"), ..Welcome::default() };
            let (joined, admitted) = tokio::join!(join(&near, Claim::Ticket(&secret), me), async {
                let applicant = welcome(&far, &gate).await?;
                assert_eq!((applicant.hello().name.as_str(), applicant.hello().protocol), ("w", PROTOCOL));
                applicant.admit(answer.clone()).await
            });
            let ((welcome, mut sender, mut receiver), (hello, mut back, mut forth)) =
                (joined.unwrap(), admitted.unwrap());
            assert_eq!((welcome, hello.threads), (answer, 2));
            sender.send(&Message::Drain).await.unwrap();
            assert_eq!(forth.recv().await.unwrap(), Message::Drain);
            let bye = Message::Bye { text: "over".into() };
            back.send(&bye).await.unwrap();
            assert_eq!(receiver.recv().await.unwrap(), bye);
            // The ticket is rotated; the key is known now.
            gate.secret = JoinSecret::random();
            gate.known.remember(worker.peer_id());
        }
    });
}

async fn refused(gate: &Gate, secret: &JoinSecret, me: Introduction) -> (RejectCode, String) {
    let (coordinator, worker) = pair(&Network::new(2));
    let (near, far) = knock(&coordinator, &worker).await;
    let (joined, welcomed) = tokio::join!(join(&near, Claim::Ticket(secret), me), welcome(&far, gate));
    assert!(matches!(welcomed.unwrap_err(), NetError::Rejected { .. }));
    let NetError::Rejected { code, text } = joined.unwrap_err() else { panic!("not a rejection") };
    (code, text)
}

#[test]
fn a_wrong_or_expired_ticket_is_refused_with_the_reason() {
    simulate(async {
        let gate = gate();
        let (code, text) = refused(&gate, &JoinSecret::random(), Introduction::default()).await;
        assert_eq!(code, RejectCode::Secret);
        assert!(text.contains("rotated or belongs to another mesh"), "{text}");
        let expired = Gate { expires_unix: Some(1), ..gate.clone() };
        assert_eq!(refused(&expired, &gate.secret, Introduction::default()).await.0, RejectCode::Expired);
    });
}

#[test]
fn who_computes_otherwise_or_hides_something_is_refused() {
    simulate(async {
        let gate = Gate { numerics: "arithmetic 1".into(), ..gate() };
        let me = Introduction { numerics: "arithmetic 2".into(), ..Introduction::default() };
        let (code, text) = refused(&gate, &gate.secret, me).await;
        assert_eq!(code, RejectCode::Version);
        assert!(text.contains("(arithmetic 2)") && text.contains("(arithmetic 1)"), "{text}");
        let me = Introduction { name: "w\x1b[2J".into(), numerics: "arithmetic 1".into(), ..Introduction::default() };
        let (code, text) = refused(&gate, &gate.secret, me).await;
        assert_eq!((code, text.as_str()), (RejectCode::Malformed, "control characters in the hello: w\\u{1b}[2J"));
    });
}

#[test]
fn a_guest_may_send_a_hello_and_little_else() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(14));
        let (near, far) = knock(&coordinator, &worker).await;
        assert!(matches!(near.open_frames(PlanEpoch(1)).await, Err(NetError::Deadline { .. })));
        let (mut sender, _receiver) = near.open_control().await.unwrap();
        let long = Message::Bye { text: "x".repeat(500_000) };
        let gate = gate();
        let (sent, verdict) = tokio::join!(sender.send(&long), welcome(&far, &gate));
        assert!(matches!(sent, Err(NetError::Closed { code: CloseCode::Malformed, .. })), "{sent:?}");
        assert!(matches!(verdict, Err(NetError::Protocol { .. })), "{verdict:?}");
        // Once it is trusted it may, as far as a worker needs it.
        let (near, far) = knock(&coordinator, &worker).await;
        far.trust();
        let _link = near.open_frames(PlanEpoch(1)).await.unwrap();
    });
}

#[test]
fn a_crowd_at_the_door_keeps_nobody_out() {
    simulate(async {
        let network = Network::new(15);
        let (coordinator, worker) = pair(&network);
        let crowd = network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
        let address = addresses(coordinator.local_addr());
        let mut silent = Vec::new();
        for _ in 0..2 * DOOR_PER_ADDRESS {
            let (near, far) = tokio::join!(crowd.dial(&address, coordinator.peer_id()), coordinator.accept());
            silent.push((near.unwrap(), far.unwrap()));
        }
        // The last ones still stand there, the first ones had to go.
        assert!(matches!(silent[0].0.closed().await, NetError::Closed { code: CloseCode::Limit, .. }));
        let (near, far) = knock(&coordinator, &worker).await;
        let gate = gate();
        let (joined, welcomed) =
            tokio::join!(join(&near, Claim::Ticket(&gate.secret), Introduction::default()), async {
                let answer = Welcome { mesh: "m".into(), assigned_name: "w".into(), ..Welcome::default() };
                welcome(&far, &gate).await.unwrap().admit(answer).await
            });
        assert!(joined.is_ok() && welcomed.is_ok());
    });
}

#[test]
fn another_version_is_refused_naming_both() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(3));
        let (near, far) = connect(&coordinator, &worker).await;
        let (mut sender, mut receiver) = near.open_control().await.unwrap();
        let hello = Hello {
            protocol: 99,
            version: "9.9.9".into(),
            features: 0,
            name: "x".repeat(100_000),
            os: String::new(),
            numerics: String::new(),
            memory_bytes: 0,
            threads: 0,
            secret_id: [0; 8],
            proof: [0; 32],
            // A peer of another version is told so whatever else it says.
            sections: sections(&[7]),
        };
        sender.send(&Message::Hello(hello)).await.unwrap();
        let gate = gate();
        let (answer, verdict) = tokio::join!(
            async {
                let answer = receiver.recv().await.unwrap();
                near.close(CloseCode::Ok, "");
                answer
            },
            welcome(&far, &gate)
        );
        assert!(matches!(verdict, Err(NetError::Rejected { code: RejectCode::Version, .. })));
        let Message::Reject { code: RejectCode::Version, text } = answer else { panic!("{answer:?}") };
        assert!(
            text.contains("protocol 99 (qmesh 9.9.9)") && text.contains(&format!("protocol {PROTOCOL} (qmesh 0.")),
            "{text}"
        );
    });
}

#[test]
fn keys_are_checked_both_ways() {
    simulate(async {
        let network = Network::new(4);
        let (coordinator, worker) = pair(&network);
        let stranger = Identity::ephemeral().peer_id();
        let error = worker.dial(&addresses(coordinator.local_addr()), stranger).await.unwrap_err();
        let NetError::WrongKey { expected, found, .. } = error else { panic!("{error}") };
        assert_eq!((expected, found), (stranger, coordinator.peer_id()));
        // The worker admits nobody but the coordinator.
        let other = network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap();
        let dialled = other.dial(&addresses(worker.local_addr()), worker.peer_id()).await.unwrap();
        assert!(matches!(dialled.closed().await, NetError::NotAdmitted { .. }));
        worker.admission().allow([other.peer_id()]);
        let (near, far) = connect(&worker, &other).await;
        assert_eq!((near.peer(), far.peer()), (worker.peer_id(), other.peer_id()));
    });
}

#[test]
fn nobody_at_an_address_is_told_from_others() {
    simulate(async {
        let network = Network::new(5);
        let (coordinator, worker) = pair(&network);
        let nowhere = ["10.9.9.9:1".to_owned(), coordinator.local_addr().to_string()];
        let start = Instant::now();
        worker.dial(&nowhere, coordinator.peer_id()).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "the second address must not wait for the first");
        let error = worker.dial(&nowhere[..1], coordinator.peer_id()).await.unwrap_err();
        assert!(matches!(&error, NetError::Unreachable { text, .. } if text == "10.9.9.9:1: no answer"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(11));
        assert!(matches!(worker.dial(&[], coordinator.peer_id()).await, Err(NetError::Unreachable { .. })));
    });
}

/// 200 frames there and back; virtual time, packets, and a hash of what came back.
async fn echo(seed: u64) -> (Duration, Packets, blake3::Hash) {
    let network = Network::new(seed);
    network.faults(Faults { delay: Duration::from_millis(20), loss: 0.02, ..Faults::default() });
    let (coordinator, worker) = pair(&network);
    let start = Instant::now();
    let (near, far) = connect(&coordinator, &worker).await;
    let server = tokio::spawn(async move {
        let mut frames = next_link(&far).await;
        let mut back = far.open_frames(frames.epoch()).await.unwrap();
        while let Some(frame) = frames.recv().await.unwrap() {
            back.send(&frame).await.unwrap();
        }
        back.finish(StepId(200)).await.unwrap();
        far.closed().await
    });
    let mut there = near.open_frames(PlanEpoch(1)).await.unwrap();
    let mut seen = blake3::Hasher::new();
    there.send(&frame(0, 8)).await.unwrap();
    let mut back = next_link(&near).await;
    for step in 0..200 {
        let echoed = back.recv().await.unwrap().unwrap();
        assert_eq!(echoed, frame(step, 8));
        seen.update(&echoed.payload);
        if step < 199 {
            there.send(&frame(step + 1, 8)).await.unwrap();
        }
    }
    there.finish(StepId(200)).await.unwrap();
    assert_eq!(back.recv().await.unwrap(), None);
    let elapsed = start.elapsed();
    near.close(CloseCode::Shutdown, "done");
    let reason = server.await.unwrap();
    assert!(matches!(reason, NetError::Closed { code: CloseCode::Shutdown, .. }), "{reason}");
    (elapsed, network.packets(), seen.finalize())
}

#[test]
fn a_lossy_echo_repeats_exactly() {
    let (first, again) = (simulate(echo(7)), simulate(echo(7)));
    assert_eq!(first, again);
    assert!(first.0 > Duration::from_secs(8) && first.1.lost > 10, "{first:?}");
    assert_ne!(simulate(echo(8)).1, first.1);
}

#[test]
fn a_cut_link_and_a_dead_peer_are_noticed() {
    simulate(async {
        let network = Network::new(9);
        network.faults(Faults { delay: Duration::from_millis(5), ..Faults::default() });
        let (coordinator, worker) = pair(&network);
        let (near, far) = connect(&coordinator, &worker).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        network.cut(coordinator.local_addr(), worker.local_addr());
        let start = Instant::now();
        let (near_end, far_end) = tokio::join!(near.closed(), far.closed());
        assert!(matches!((near_end, far_end), (NetError::Lost { .. }, NetError::Lost { .. })));
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        network.heal(coordinator.local_addr(), worker.local_addr());
        let (near, _far) = connect(&coordinator, &worker).await;
        network.kill(coordinator.local_addr());
        assert!(matches!(near.accept_stream().await, Err(NetError::Lost { .. })));
        assert!(matches!(near.accept_control().await, Err(NetError::Lost { .. })));
    });
}

#[test]
fn ranges_are_served_refused_and_cut_short() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(10));
        let (near, far) = connect(&coordinator, &worker).await;
        let tensor: Bytes = (0..3_000_000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
        let content = tensor.clone();
        let server = tokio::spawn(async move {
            while let Ok(Incoming::Range(mut range)) = far.accept_stream().await {
                let RangeRequest { tensor, offset, bytes } = range.request();
                if tensor[0] == 0 {
                    range.refuse("not here").await.unwrap();
                    continue;
                }
                let piece = content.slice(offset as usize..(offset + bytes) as usize);
                range.accept(bytes).await.unwrap();
                range.write(piece.slice(..1000)).await.unwrap();
                if tensor[0] == 1 {
                    range.write(piece.slice(1000..)).await.unwrap();
                    assert!(range.write(Bytes::from_static(b"more")).await.is_err());
                } else {
                    assert!(range.finish().is_err());
                }
            }
        });
        let request = |kind| RangeRequest { tensor: [kind; 32], offset: 17, bytes: 2_500_000 };
        let mut range = near.fetch_range(request(1)).await.unwrap();
        assert_eq!(range.bytes_total(), 2_500_000);
        let mut got = vec![];
        while let Some(piece) = range.next().await.unwrap() {
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, tensor[17..2_500_017]);
        let refusal = near.fetch_range(request(0)).await.unwrap_err();
        assert!(matches!(&refusal, NetError::RangeRefused { text, .. } if text == "not here"), "{refusal}");
        let short = async { near.fetch_range(request(2)).await?.next().await };
        assert!(matches!(short.await, Err(NetError::StreamEnded { .. })));
        near.close(CloseCode::Ok, "");
        server.await.unwrap();
    });
}

#[test]
fn interrupted_sends_and_receives_lose_nothing_silently() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(11));
        let (near, far) = connect(&coordinator, &worker).await;
        let mut there = near.open_frames(PlanEpoch(1)).await.unwrap();
        let mut frames = next_link(&far).await;
        // A receive is dropped a thousand times while the frame comes in.
        let receive = tokio::spawn(async move {
            loop {
                let patience = Duration::from_micros(50);
                if let Ok(frame) = tokio::time::timeout(patience, frames.recv()).await {
                    break (frame.unwrap().unwrap(), frames);
                }
            }
        });
        there.send(&frame(1, 2000)).await.unwrap();
        let (received, mut frames) = receive.await.unwrap();
        assert_eq!(received, frame(1, 2000));
        // Nobody reads: the window fills, and the send that gives up leaves a torn link, which both ends notice.
        let send = async {
            for step in 2.. {
                there.send(&frame(step, 8000)).await.unwrap();
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(3), send).await.is_err());
        assert!(matches!(there.send(&frame(9, 1)).await, Err(NetError::Unsendable { .. })));
        drop(there);
        let error = loop {
            if let Err(error) = frames.recv().await {
                break error;
            }
        };
        assert!(matches!(error, NetError::StreamEnded { code: CloseCode::Internal, .. }), "{error}");
        assert!(near.open_frames(PlanEpoch(2)).await.is_ok(), "the connection itself is well");
    });
}

#[test]
fn bytes_that_are_not_the_protocol_end_the_connection() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(12));
        let (near, far) = connect(&coordinator, &worker).await;
        let (mut sender, _receiver) = near.open_control().await.unwrap();
        let (_back, mut forth) = far.accept_control().await.unwrap();
        sender.send_bytes(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
        sender.send(&Message::Drain).await.unwrap();
        assert_eq!(forth.recv().await.unwrap(), Message::Drain, "an optional type is skipped");
        sender.send_bytes(&[0x01, 0x70]).await.unwrap();
        assert!(matches!(forth.recv().await, Err(NetError::Message { .. })));
        assert!(matches!(near.closed().await, NetError::Closed { code: CloseCode::Malformed, .. }));
    });
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for() {
    simulate(async {
        let (coordinator, worker) = pair(&Network::new(13));
        let (near, far) = connect(&coordinator, &worker).await;
        let start = Instant::now();
        assert!(matches!(welcome(&far, &gate()).await, Err(NetError::Deadline { .. })));
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert!(matches!(near.closed().await, NetError::Closed { code: CloseCode::Limit, .. }));
        let (near, _far) = connect(&coordinator, &worker).await;
        let joined = join(&near, Claim::Ticket(&JoinSecret::random()), Introduction::default()).await;
        assert!(matches!(joined, Err(NetError::Deadline { .. })));
    });
}

#[tokio::test]
async fn real_udp_on_loopback() {
    let any = "127.0.0.1:0".parse().unwrap();
    let coordinator = Endpoint::bind(any, &Identity::ephemeral(), Admission::anyone()).unwrap();
    let worker = Endpoint::bind(any, &Identity::ephemeral(), Admission::only([])).unwrap();
    let taken = Endpoint::bind(coordinator.local_addr(), &Identity::ephemeral(), Admission::anyone()).unwrap_err();
    assert!(matches!(taken, NetError::AddressInUse { address } if address == coordinator.local_addr()));
    let (near, far) = connect(&coordinator, &worker).await;
    let mut there = near.open_frames(PlanEpoch(1)).await.unwrap();
    let mut frames = next_link(&far).await;
    for step in 0..20 {
        let sent = frame(step, 64);
        let (sending, received) = tokio::join!(there.send(&sent), frames.recv());
        sending.unwrap();
        assert_eq!(received.unwrap(), Some(sent));
    }
    worker.close(CloseCode::Shutdown, "bye");
    worker.closed().await;
    let reason = far.closed().await;
    assert!(matches!(&reason, NetError::Closed { code: CloseCode::Shutdown, text, .. } if text == "bye"), "{reason}");
    coordinator.close(CloseCode::Ok, "");
    assert!(coordinator.accept().await.is_none());
}
