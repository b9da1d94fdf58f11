//! A worker with a good ticket that does not keep to its part: it is shut out by name, and answers are none the worse.

use std::time::Duration;

use qmesh_models::numerics;
use qmesh_net::{
    Admission, Claim, Connection, ControlReceiver, ControlSender, Endpoint, Fault, FaultCode, Frame, FrameKind,
    Identity, Introduction, Message, PlanEpoch, Sampled, Sections, Segment, SessionId, ShardPhase, ShardStatus, StepId,
    Ticket, Trail, Wants, join,
};
use qmesh_tests::http;
use tokio::{runtime::Runtime, time::timeout};

use super::{QUESTION, Serving, number, terminals::stream_chat};

#[test]
fn a_worker_that_speaks_for_others_is_shut_out() {
    let mut serving = Serving::start(&["--min-workers", "1"]);
    let _honest = serving.join("honest", &[]);
    serving.wait_ready(1);
    let (expected, _) = stream_chat(&serving.url, QUESTION);

    // All join before anybody lies, so that no plan is made in between.
    let ticket: Ticket = serving.ticket.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let liars: Vec<(Lie, Liar)> =
        LIES.iter().map(|lie| (*lie, runtime.block_on(Liar::join(&ticket, lie.name)))).collect();
    std::thread::sleep(SETTLED);
    serving.wait_ready(1);

    for (lie, liar) in liars {
        let epoch = epoch(&serving);
        shut_out(&runtime, liar, lie, epoch);
        let line = serving.coordinator.wait_for(PATIENCE, "a line that names the liar", |line| {
            line.contains(&format!("closing the link to {}", lie.name)).then(|| line.to_owned())
        });
        println!("{line}");
        assert_eq!(self::epoch(&serving), epoch, "{}: the pipeline stands", lie.name);
        let (text, _) = stream_chat(&serving.url, QUESTION);
        assert_eq!(text, expected, "{}: the same answer", lie.name);
    }
}

/// What a worker says that has no stage.
#[derive(Clone, Copy)]
struct Lie {
    name: &'static str,
    /// On its control stream, or else sampled rows on a link.
    message: Option<fn(PlanEpoch) -> Message>,
}

/// Sessions and steps are numbered from 1 and 0: these are such that run, or will.
const LIES: [Lie; 7] = [
    Lie { name: "samples", message: None },
    Lie { name: "opens", message: Some(|epoch| Message::Opened { epoch, session: SessionId(3) }) },
    Lie {
        name: "refuses",
        message: Some(|epoch| Message::Refused { epoch, session: SessionId(3), text: "no".into() }),
    },
    Lie { name: "links", message: Some(|epoch| Message::Linked { epoch, sections: Sections::default() }) },
    Lie { name: "loads", message: Some(failed_status) },
    Lie { name: "reports", message: Some(|epoch| fault(epoch, None)) },
    Lie { name: "accuses", message: Some(|epoch| fault(epoch, Some(SessionId(3)))) },
];

fn failed_status(epoch: PlanEpoch) -> Message {
    let (phase, text) = (ShardPhase::Failed, "no room".to_owned());
    let sections = Sections::default();
    Message::ShardStatus(ShardStatus {
        epoch,
        phase,
        bytes_done: 0,
        bytes_total: 1,
        text,
        peak_memory_bytes: 0,
        sections,
    })
}

fn fault(epoch: PlanEpoch, session: Option<SessionId>) -> Message {
    Message::Fault(Fault { epoch, session, code: FaultCode::Internal, text: "made up".into() })
}

/// A worker that offers too little memory for any layer, and so gets no stage.
struct Liar {
    _endpoint: Endpoint,
    connection: Connection,
    sender: ControlSender,
    _receiver: ControlReceiver,
}

impl Liar {
    async fn join(ticket: &Ticket, name: &str) -> Self {
        let admission = Admission::only([ticket.coordinator]);
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &Identity::ephemeral(), admission).unwrap();
        let connection = endpoint.dial(&ticket.addresses, ticket.coordinator).await.unwrap();
        let (name, numerics) = (name.to_owned(), numerics::expected());
        let me = Introduction { name, numerics, memory_bytes: 1 << 20, threads: 1, ..Introduction::default() };
        let (_, sender, receiver) = join(&connection, Claim::Ticket(&ticket.secret), me).await.unwrap();
        Self { _endpoint: endpoint, connection, sender, _receiver: receiver }
    }
}

/// Tells the lie, and waits for the coordinator to hang up.
fn shut_out(runtime: &Runtime, mut liar: Liar, lie: Lie, epoch: PlanEpoch) {
    runtime.block_on(async {
        match lie.message {
            Some(message) => liar.sender.send(&message(epoch)).await.unwrap(),
            None => {
                let mut link = liar.connection.open_frames(epoch).await.unwrap();
                link.send(&samples(epoch)).await.unwrap();
            }
        }
        let closed = timeout(PATIENCE, liar.connection.closed()).await;
        assert!(closed.is_ok(), "{}: the coordinator does not hang up", lie.name);
    });
}

/// A token for a session that runs, as if this were the last stage.
fn samples(epoch: PlanEpoch) -> Frame {
    let (wants, session) = (Wants::Last, SessionId(3));
    let segment = Segment { session, position: 0, rows: 1, wants, trail: Trail(0) };
    let (width, payload) = Sampled::encode_rows(&[Sampled { token: 7, ..Sampled::default() }]);
    let end = Frame::end(epoch, StepId(0));
    Frame { kind: FrameKind::Sampled, width, segments: vec![segment], ids: vec![0], payload, ..end }
}

fn epoch(serving: &Serving) -> PlanEpoch {
    let epoch = number(&http::get(&serving.path("/api/status")).body, "epoch");
    PlanEpoch(u32::try_from(epoch).unwrap())
}

/// Longer than the coordinator waits for others to join, before it plans.
const SETTLED: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(10);
