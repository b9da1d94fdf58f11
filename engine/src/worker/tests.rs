//! Whole workers on a network in memory, with a coordinator that is played by the test.

mod cache;
mod keys;
mod masks;
mod plans;
mod sources;
mod tickets;

use std::{
    num::NonZeroUsize,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprints, ShardDemand},
    numerics,
    weights::ModelFile,
};
use qmesh_net::{
    Admission, Connection, ControlReceiver, ControlSender, Downstream, Endpoint, Fault, FaultCode, Frame, FrameKind,
    FrameReceiver, FrameSender, Gate, Identity, Incoming, JoinSecret, LoadShard, Message, NetError, OpenSession,
    PeerId, PlanEpoch, RangeServer, Route, Sampled, Sampling, Sections, Segment, SessionId, ShardPhase, StageIndex,
    StepId, StepTimes, Strangers, Ticket, Trail, Trails, Upstream, Wants, Welcome, memory::Network, welcome,
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

use self::tickets::ticket_of;
use super::{Audience, MeasuredBy, Search, Stay, WayIn, WorkerConfig, WorkerEnd, WorkerError, run};
use crate::backend::cpu::CpuBackend;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");
const LAYERS: u32 = 3;
const PROMPT: [u32; 4] = [82, 3, 40, 17];

static MODEL: LazyLock<ModelFile> = LazyLock::new(|| ModelFile::open(Path::new(TINY).join("llama.gguf")).unwrap());

/// A plan for `layers` of the tiny model: a stage for those before, if any, and one for those after.
pub(super) fn load_shard(epoch: u32, layers: Range<u32>) -> LoadShard {
    let before = u16::from(layers.start > 0);
    let spec = MODEL.spec().shard(layers.start as usize..layers.end as usize);
    LoadShard {
        epoch: PlanEpoch(epoch),
        stage: StageIndex(before),
        stages: before + 1 + u16::from(layers.end < LAYERS),
        model_id: [7; 32],
        model_name: "tiny".into(),
        spec_json: serde_json::to_vec(&spec).unwrap(),
        layers,
        tensor_hashes: MODEL.hashes(&spec.tensors).unwrap(),
        kv_positions: 256,
        context: 128,
        chunk_rows: 64,
        sections: Sections::default(),
    }
}

/// The coordinator's end of one worker.
struct Played {
    connection: Connection,
    sender: ControlSender,
    receiver: ControlReceiver,
    /// Bytes of tensors served.
    served: u64,
    /// How many of the next ranges come with a wrong byte.
    lies: u32,
}

/// A worker in a task.
struct Hired {
    address: String,
    peer: PeerId,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<WorkerEnd, WorkerError>>,
    cache: tempfile::TempDir,
}

struct Stagecraft {
    network: Network,
    coordinator: Endpoint,
    secret: JoinSecret,
}

impl Stagecraft {
    fn new(seed: u64) -> Self {
        let network = Network::new(seed);
        let coordinator = network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap();
        Self { network, coordinator, secret: JoinSecret::random() }
    }

    fn hire(&self, change: impl FnOnce(&mut WorkerConfig)) -> Hired {
        let cache = tempfile::tempdir().unwrap();
        let ticket = Ticket {
            addresses: vec![self.coordinator.local_addr().to_string()],
            rendezvous: Vec::new(),
            coordinator: self.coordinator.peer_id(),
            secret: self.secret.clone(),
            expires_unix: None,
        };
        let mut config = WorkerConfig {
            ticket_file: None,
            search: Search::default(),
            way_in: WayIn::Ticket(ticket),
            name: "hired".into(),
            memory: None,
            cache: cache.path().to_owned(),
            cache_size: None,
            model_folders: Vec::new(),
            stay: Stay::Once,
            measured_by: MeasuredBy::ThisProcess,
            audience: Audience::Nobody,
            backend: Arc::new(CpuBackend::new(NonZeroUsize::MIN)),
        };
        change(&mut config);
        let endpoint = self.network.endpoint(&Identity::ephemeral(), Admission::only([])).unwrap();
        let (address, peer) = (endpoint.local_addr().to_string(), endpoint.peer_id());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            if stopped.await.is_err() {
                std::future::pending().await
            }
        };
        Hired { address, peer, stop: Some(stop), task: tokio::spawn(run(config, endpoint, shutdown)), cache }
    }

    fn gate(&self) -> Gate {
        Gate {
            secret: self.secret.clone(),
            expires_unix: None,
            known: Default::default(),
            strangers: Strangers::NeedTickets,
            numerics: numerics::expected(),
        }
    }

    async fn admit(&self) -> Played {
        let connection = self.coordinator.accept().await.unwrap();
        let applicant = welcome(&connection, &self.gate()).await.unwrap();
        assert!(applicant.hello().memory_bytes > 0 && applicant.hello().threads == 1);
        let place = Welcome { mesh: "stage".into(), assigned_name: "hired".into(), ..Welcome::default() };
        let (_, sender, receiver) = applicant.admit(place).await.unwrap();
        Played { connection, sender, receiver, served: 0, lies: 0 }
    }
}

impl Played {
    async fn tell(&mut self, message: Message) {
        self.sender.send(&message).await.unwrap();
    }

    /// The next message that `pick` wants; serves tensors meanwhile.
    async fn hear<T>(&mut self, mut pick: impl FnMut(Message) -> Option<T>) -> T {
        let hear = async {
            loop {
                tokio::select! {
                    message = self.receiver.recv() => {
                        if let Some(picked) = pick(message.unwrap()) {
                            return picked;
                        }
                    }
                    stream = self.connection.accept_stream() => match stream.unwrap() {
                        Incoming::Range(server) => {
                            // A worker that has given up takes no more.
                            self.served += serve(server, self.lies > 0).await.unwrap_or(0);
                            self.lies = self.lies.saturating_sub(1);
                        }
                        other @ (Incoming::Frames(_) | Incoming::Reading(_)) => panic!("before its time: {other:?}"),
                    },
                }
            }
        };
        timeout(Duration::from_secs(20), hear).await.expect("the worker says nothing more")
    }

    async fn load(&mut self, load: LoadShard) -> Result<(), String> {
        self.tell(Message::Load(load)).await;
        self.hear(|message| {
            let Message::ShardStatus(status) = message else { return None };
            match status.phase {
                ShardPhase::Ready => Some(Ok(())),
                ShardPhase::Failed => Some(Err(status.text)),
                ShardPhase::Fetching | ShardPhase::Loading => None,
            }
        })
        .await
    }

    async fn route(&mut self, epoch: u32, stage: u16, upstream: Upstream, downstream: Downstream) {
        let (epoch, stage) = (PlanEpoch(epoch), StageIndex(stage));
        self.tell(Message::Route(Route { epoch, stage, upstream, downstream, sections: Sections::default() })).await;
    }

    async fn linked(&mut self) {
        self.hear(|message| matches!(message, Message::Linked { .. }).then_some(())).await;
    }

    async fn link_from_last_stage(&self) -> FrameReceiver {
        match timeout(Duration::from_secs(20), self.connection.accept_stream()).await.unwrap().unwrap() {
            Incoming::Frames(receiver) => receiver,
            other @ (Incoming::Range(_) | Incoming::Reading(_)) => panic!("after the load: {other:?}"),
        }
    }

    async fn open(&mut self, epoch: u32, session: u64, max_positions: u32) -> Result<(), String> {
        let (epoch, session) = (PlanEpoch(epoch), SessionId(session));
        let sampling = Sampling { top: 2, ..Sampling::default() };
        self.tell(Message::Open(OpenSession { epoch, session, max_positions, sampling, prefix: None })).await;
        self.hear(|message| {
            if let Message::Refused { text, .. } = message {
                return Some(Err(text));
            }
            matches!(message, Message::Opened { .. }).then_some(Ok(()))
        })
        .await
    }

    /// Takes leave of a worker that was asked to stop.
    async fn part(mut self) {
        self.hear(|message| matches!(message, Message::Bye { .. }).then_some(())).await;
        self.connection.close(qmesh_net::CloseCode::Ok, "");
    }

    async fn fault(&mut self) -> Fault {
        self.hear(|message| if let Message::Fault(fault) = message { Some(fault) } else { None }).await
    }
}

/// Serves one range of the model's tensors, in two pieces where it can.
async fn serve(mut server: RangeServer, lie: bool) -> Result<u64, NetError> {
    let request = server.request();
    let tensors = &MODEL.spec().tensors;
    let hashes = MODEL.hashes(tensors).unwrap();
    let tensor = &tensors[hashes.iter().position(|hash| *hash == request.tensor).unwrap()];
    let mut bytes = vec![0; usize::try_from(request.bytes).unwrap()];
    MODEL.read_range(tensor.part, tensor.offset + request.offset, &mut bytes).unwrap();
    bytes[0] ^= u8::from(lie);
    server.accept(request.bytes).await?;
    let bytes = Bytes::from(bytes);
    let (first, second) = (bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..));
    for piece in [first, second] {
        server.write(piece).await?;
    }
    server.finish()?;
    Ok(request.bytes)
}

/// A frame of the ids from a position on, of sessions with all their ids so far.
fn tokens(epoch: u32, step: u32, parts: &[(u64, usize, &[u32])]) -> Frame {
    let segments = parts.iter().map(|&(session, position, ids)| Segment {
        session: SessionId(session),
        position: u32::try_from(position).unwrap(),
        rows: u32::try_from(ids.len() - position).unwrap(),
        wants: Wants::Last,
        trail: Trails::default().write(0, ids).unwrap(),
    });
    Frame {
        kind: FrameKind::Tokens,
        epoch: PlanEpoch(epoch),
        step: StepId(step),
        width: 0,
        times: StepTimes::default(),
        segments: segments.collect(),
        ids: parts.iter().flat_map(|&(_, position, ids)| &ids[position..]).copied().collect(),
        payload: Bytes::new(),
        sections: Sections::default(),
    }
}

/// The prompt, then greedy tokens one by one.
async fn generate(epoch: u32, first_step: u32, to: &mut FrameSender, from: &mut FrameReceiver) -> Vec<u32> {
    let mut ids = PROMPT.to_vec();
    let mut sent = 0;
    for step in 0..6 {
        to.send(&tokens(epoch, first_step + step, &[(1, sent, &ids)])).await.unwrap();
        let frame = timeout(Duration::from_secs(20), from.recv()).await.unwrap().unwrap().unwrap();
        let rows = Sampled::decode_rows(&frame).unwrap();
        assert_eq!((frame.kind, rows.len(), rows[0].top.len()), (FrameKind::Sampled, 1, 2));
        sent = ids.len();
        ids.push(rows[0].token);
    }
    ids
}

async fn alone(stage: &Stagecraft, epoch: u32) -> (Hired, Played, FrameSender, FrameReceiver) {
    let hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    played.load(load_shard(epoch, 0..LAYERS)).await.unwrap();
    played.route(epoch, 0, Upstream::Coordinator, Downstream::Coordinator).await;
    let to = played.connection.open_frames(PlanEpoch(epoch)).await.unwrap();
    let from = played.link_from_last_stage().await;
    played.linked().await;
    (hired, played, to, from)
}

async fn ended(task: JoinHandle<Result<WorkerEnd, WorkerError>>) -> WorkerEnd {
    timeout(Duration::from_secs(20), task).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn one_worker_or_three_say_the_same() {
    let stage = Stagecraft::new(1);
    let (mut hired, mut played, mut to, mut from) = alone(&stage, 1).await;
    assert_eq!(played.served, MODEL.spec().tensors.iter().map(|tensor| tensor.bytes).sum::<u64>());
    played.open(1, 1, 32).await.unwrap();
    let expected = generate(1, 0, &mut to, &mut from).await;
    hired.stop.take().unwrap().send(()).unwrap();
    played.part().await;
    assert_eq!(ended(hired.task).await, WorkerEnd::Asked);

    let hired = [stage.hire(|_| {}), stage.hire(|_| {}), stage.hire(|_| {})];
    let mut cast = Vec::new();
    for _ in &hired {
        cast.push(stage.admit().await);
    }
    // They may have come in another order.
    let order: Vec<_> =
        cast.iter().map(|p| hired.iter().position(|h| h.peer == p.connection.peer()).unwrap()).collect();
    for (index, played) in (0..).zip(&mut cast) {
        played.load(load_shard_of_three(2, index)).await.unwrap();
    }
    for index in [0, 2, 1] {
        let peer = |i: usize| cast[i].connection.peer();
        let upstream = if index == 0 { Upstream::Coordinator } else { Upstream::Worker(peer(index - 1)) };
        let downstream = match order.get(index + 1) {
            Some(&next) => Downstream::Worker { peer: peer(index + 1), addresses: vec![hired[next].address.clone()] },
            None => Downstream::Coordinator,
        };
        cast[index].route(2, u16::try_from(index).unwrap(), upstream, downstream).await;
    }
    let mut to = cast[0].connection.open_frames(PlanEpoch(2)).await.unwrap();
    let mut from = cast[2].link_from_last_stage().await;
    for played in &mut cast {
        played.linked().await;
        played.open(2, 1, 32).await.unwrap();
    }
    assert_eq!(generate(2, 0, &mut to, &mut from).await, expected);
    let report =
        cast[1].hear(|message| if let Message::StageReport(report) = message { Some(report) } else { None }).await;
    assert!(report.steps > 0 && report.compute_us > 0 && report.bytes_sent > 0 && report.peak_memory_bytes > 0);
}

fn load_shard_of_three(epoch: u32, index: u16) -> LoadShard {
    let layer = u32::from(index);
    LoadShard { stage: StageIndex(index), stages: 3, ..load_shard(epoch, layer..layer + 1) }
}

#[tokio::test]
async fn one_bad_session_does_not_hurt_the_others() {
    let stage = Stagecraft::new(2);
    let (_hired, mut played, mut to, mut from) = alone(&stage, 1).await;
    played.open(1, 1, 32).await.unwrap();
    assert!(played.open(1, 2, 1000).await.unwrap_err().contains("context"));
    assert!(played.open(1, 1, 32).await.unwrap_err().contains("open already"));
    assert!(played.open(9, 3, 32).await.unwrap_err().contains("plan 9"));
    to.send(&tokens(1, 0, &[(66, 0, &PROMPT), (1, 0, &PROMPT)])).await.unwrap();
    let fault = played.fault().await;
    assert_eq!((fault.session, fault.code), (Some(SessionId(66)), FaultCode::UnknownSession));
    let frame = timeout(Duration::from_secs(20), from.recv()).await.unwrap().unwrap().unwrap();
    let rows: Vec<_> = frame.segments.iter().map(|s| (s.session.0, s.rows)).collect();
    assert_eq!((rows, frame.step), (vec![(66, 0), (1, 1)], StepId(0)));

    to.send(&tokens(1, 1, &[(1, 9, &[5; 10])])).await.unwrap();
    let fault = played.fault().await;
    assert_eq!(fault.code, FaultCode::Gap { need: 4 });

    // An id that is another one here than at the sender.
    played.open(1, 4, 32).await.unwrap();
    let mut altered = tokens(1, 2, &[(4, 0, &PROMPT), (1, 0, &PROMPT)]);
    altered.segments[0].trail = Trail(1);
    to.send(&altered).await.unwrap();
    let fault = played.fault().await;
    assert_eq!((fault.session, fault.code), (Some(SessionId(4)), FaultCode::Ids));
    assert_eq!(fault.text, "the coordinator and stage 0 disagree about the first 4 ids of session 4");
}

#[tokio::test]
async fn tensors_come_over_the_network_only_when_they_must() {
    let stage = Stagecraft::new(3);
    let hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    played.load(load_shard(1, 0..2)).await.unwrap();
    let bytes = |layers: Range<usize>| MODEL.spec().shard_bytes(&layers);
    assert_eq!(played.served, bytes(0..2));
    // Another cut: only what is new. The first layers stay in the cache.
    played.load(load_shard(2, 0..LAYERS)).await.unwrap();
    assert_eq!(played.served, bytes(0..LAYERS as usize));
    played.load(load_shard(3, 1..2)).await.unwrap();
    assert_eq!(played.served, bytes(0..LAYERS as usize));

    // Damage on the disk is found when the shard is loaded, and mended.
    let spec = MODEL.spec().shard(0..1);
    let hash = blake3::Hash::from_bytes(MODEL.hashes(&spec.tensors[..1]).unwrap()[0]).to_hex();
    let blob = hired.cache.path().join("blobs").join(&hash[..2]).join(hash.as_str());
    let mut damaged = std::fs::read(&blob).unwrap();
    damaged[17] ^= 1;
    std::fs::write(&blob, damaged).unwrap();
    for epoch in [2, 3] {
        played.tell(Message::Unload { epoch: PlanEpoch(epoch) }).await;
    }
    played.load(load_shard(4, 0..1)).await.unwrap();
    assert_eq!(played.served, bytes(0..LAYERS as usize) + spec.tensors[0].bytes);

    let local = stage.hire(|config| config.model_folders = vec![PathBuf::from(TINY)]);
    let mut played = stage.admit().await;
    played.load(load_shard(5, 0..LAYERS)).await.unwrap();
    assert_eq!(played.served, 0);
    played.tell(Message::Bye { text: "over".into() }).await;
    drop(played);
    assert_eq!(ended(local.task).await, WorkerEnd::Dismissed);
}

#[tokio::test]
async fn wrong_bytes_are_fetched_once_more_and_then_refused() {
    let stage = Stagecraft::new(6);
    let _hired = stage.hire(|_| {});
    let mut played = stage.admit().await;
    played.lies = 1;
    played.load(load_shard(1, 0..1)).await.unwrap();
    assert!(played.served > MODEL.spec().shard_bytes(&(0..1)));
    played.lies = u32::MAX;
    let text = played.load(load_shard(2, 1..2)).await.unwrap_err();
    assert!(text.contains("does not have the promised hash"), "{text}");
    // Nothing wrong was kept, and the worker goes on.
    played.lies = 0;
    played.load(load_shard(3, 1..2)).await.unwrap();
}

#[tokio::test]
async fn too_little_memory_is_said_before_anything_is_fetched() {
    let stage = Stagecraft::new(4);
    let _hired = stage.hire(|config| config.memory = Some(ByteCount(100_000)));
    let connection = stage.coordinator.accept().await.unwrap();
    let gate = Gate {
        secret: stage.secret.clone(),
        expires_unix: None,
        known: Default::default(),
        strangers: Strangers::NeedTickets,
        numerics: numerics::expected(),
    };
    let applicant = welcome(&connection, &gate).await.unwrap();
    assert_eq!(applicant.hello().memory_bytes, 100_000);
    let place = Welcome { mesh: "stage".into(), assigned_name: "small".into(), ..Welcome::default() };
    let (_, sender, receiver) = applicant.admit(place).await.unwrap();
    let mut played = Played { connection, sender, receiver, served: 0, lies: 0 };
    let text = played.load(load_shard(1, 0..LAYERS)).await.unwrap_err();
    assert!(text.starts_with("needs ") && text.contains("layers 0-2, this worker has 100 kB: add a worker"), "{text}");
    assert_eq!(played.served, 0);
}

#[tokio::test]
async fn what_the_planner_counts_is_enough_and_one_byte_less_is_not() {
    let load = load_shard(1, 0..LAYERS);
    let demand = ShardDemand {
        layers: 0..LAYERS as usize,
        kv_positions: load.kv_positions as usize,
        context: load.context as usize,
        chunk_rows: load.chunk_rows as usize,
        threads: 1,
        experts_in_memory: None,
    };
    let needed = Footprints::new(MODEL.spec()).shard(&demand).total_bytes();
    let stage = Stagecraft::new(7);
    let _less = stage.hire(|config| config.memory = Some(ByteCount(needed - 1)));
    let text = stage.admit().await.load(load.clone()).await.unwrap_err();
    assert!(text.starts_with("needs "), "{text}");
    let _enough = stage.hire(|config| config.memory = Some(ByteCount(needed)));
    stage.admit().await.load(load).await.unwrap();
}

#[tokio::test]
async fn a_worker_comes_back_to_its_coordinator_with_its_shard() {
    let stage = Stagecraft::new(5);
    let hired = stage.hire(|config| config.stay = Stay::ForGood);
    let mut played = stage.admit().await;
    played.load(load_shard(7, 0..2)).await.unwrap();
    played.connection.close(qmesh_net::CloseCode::Internal, "crashed");
    let mut played = timeout(Duration::from_secs(20), stage.admit()).await.unwrap();
    played.load(load_shard(1, 0..2)).await.unwrap();
    assert_eq!(played.served, 0, "the shard is still loaded");
    hired.stop.unwrap().send(()).unwrap();
    played.part().await;
    assert_eq!(ended(hired.task).await, WorkerEnd::Asked);

    let strict = stage.hire(|config| ticket_of(config).secret = JoinSecret::random());
    let connection = stage.coordinator.accept().await.unwrap();
    assert!(welcome(&connection, &stage.gate()).await.is_err());
    assert!(matches!(ended(strict.task).await, WorkerEnd::Rejected { .. }));

    let once = stage.hire(|_| {});
    let played = stage.admit().await;
    played.connection.close(qmesh_net::CloseCode::Internal, "crashed");
    assert_eq!(ended(once.task).await, WorkerEnd::Lost);
}
