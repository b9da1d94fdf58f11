//! Sequences of events, and the actions that must follow.

use bytes::Bytes;
use qmesh_net::{Downstream, OpenSession, Sampling, SessionId, StageIndex, StepId, StepTimes, WireType};

use super::*;
use crate::worker::tests::load_shard;

const COORDINATOR: PeerId = PeerId([1; 32]);
const UPSTREAM: PeerId = PeerId([2; 32]);
const STRANGER: PeerId = PeerId([3; 32]);

/// A machine, a clock and shorthands; actions are compared as text, without what only people read.
struct Rig {
    machine: Machine,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self { machine: Machine::default(), now: Instant::now() };
        rig.on(Event::Joined { coordinator: COORDINATOR });
        rig
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        self.now += Duration::from_secs(1);
        self.machine.handle(self.now, event).iter().filter_map(brief).collect()
    }

    fn message(&mut self, message: Message) -> Vec<String> {
        self.on(Event::Message(message))
    }

    fn done(&mut self, done: Done) -> Vec<String> {
        self.on(Event::Done(done))
    }

    /// Loads layers 0-1 of 3 as the first of two stages, the plan `epoch` being the `turn`th.
    fn load(&mut self, epoch: u32, turn: u64) {
        let turn = Turn(turn);
        self.message(Message::Load(load_shard(epoch, 0..2)));
        self.done(Done::Unloaded { turn });
        self.on(Event::Fetched { turn, bytes: 7, weights: Weights::default() });
        assert_eq!(self.done(Done::Loaded { turn, took: Some(Duration::ZERO) }), ["tell Ready"]);
    }

    fn link(&mut self, epoch: u32, turn: u64) {
        self.message(route(epoch, Upstream::Coordinator));
        self.on(Event::Outgoing { turn: Turn(turn) });
        let arrived = Event::Arrived { link: LinkId(turn), peer: COORDINATOR, epoch: PlanEpoch(epoch) };
        assert_eq!(self.on(arrived), [format!("read {turn}"), format!("tell Linked {epoch}")]);
    }

    fn step(&mut self, epoch: u32, turn: u64, step: u32) -> Vec<String> {
        self.on(Event::Frame { link: LinkId(turn), frame: frame(epoch, step) })
    }
}

fn brief(action: &Action) -> Option<String> {
    Some(match action {
        Action::Tell(Message::ShardStatus(status)) => format!("tell {:?}", status.phase),
        Action::Tell(Message::Linked { epoch }) => format!("tell Linked {epoch}"),
        Action::Tell(Message::Opened { epoch, session }) => format!("tell Opened {session} in {epoch}"),
        Action::Tell(Message::Refused { epoch, session, .. }) => format!("tell Refused {session} in {epoch}"),
        Action::Tell(Message::Fault(fault)) => format!("tell Fault {:?} {:?}", fault.code, fault.session.map(|s| s.0)),
        Action::Tell(Message::StageReport(report)) => format!("tell report of {} steps", report.steps),
        Action::Tell(Message::Bye { .. }) => "tell Bye".into(),
        Action::Tell(other) => format!("tell {other:?}"),
        Action::Fetch { turn, .. } => format!("fetch for {}", turn.0),
        Action::Compute(Command::Load { turn, .. }) => format!("load for {}", turn.0),
        Action::Compute(Command::Adopt { turn, .. }) => format!("adopt for {}", turn.0),
        Action::Compute(Command::Unload { turn }) => format!("unload for {}", turn.0),
        Action::Compute(Command::Open { open, .. }) => format!("open {}", open.session),
        Action::Compute(Command::Close { session, .. }) => format!("close {session}"),
        Action::Compute(Command::Keep { session, positions, .. }) => format!("keep {positions} of {session}"),
        Action::Compute(Command::Step { frame, .. }) => format!("compute {}", frame.step),
        Action::Link { epoch, upstream, .. } => format!("link {epoch} from {upstream:?}"),
        Action::Read(link) => format!("read {}", link.0),
        Action::Refuse(link) => format!("refuse {}", link.0),
        Action::Send(frame) => format!("send {}", frame.step),
        Action::Leave(departure) => format!("leave {departure:?}"),
        Action::StopFetch => "stop fetching".into(),
        Action::Unlink => "unlink".into(),
        Action::Say(_) => return None,
    })
}

fn route(epoch: u32, upstream: Upstream) -> Message {
    let downstream = Downstream::Worker { peer: STRANGER, addresses: vec!["10.0.0.1:1".into()] };
    Message::Route(Route { epoch: PlanEpoch(epoch), stage: StageIndex(0), upstream, downstream })
}

fn open(epoch: u32) -> Message {
    let (epoch, session) = (PlanEpoch(epoch), SessionId(5));
    Message::Open(OpenSession { epoch, session, max_positions: 8, sampling: Sampling::default(), prefix: None })
}

fn frame(epoch: u32, step: u32) -> Frame {
    let (kind, wire, payload) = (FrameKind::Tokens, WireType::F32, Bytes::new());
    let (epoch, step) = (PlanEpoch(epoch), StepId(step));
    Frame {
        kind,
        wire,
        epoch,
        step,
        width: 0,
        times: StepTimes::default(),
        segments: Vec::new(),
        ids: Vec::new(),
        payload,
    }
}

fn stepped(epoch: u32, turn: u64, step: u32) -> Done {
    Done::Stepped(Box::new(Stepped {
        turn: Turn(turn),
        frame: Some(frame(epoch, step)),
        faults: Vec::new(),
        rows: 3,
        compute: Duration::from_millis(2),
        waited: Duration::ZERO,
        kv_positions_used: 64,
        shard: ShardState::Whole,
    }))
}

#[test]
fn a_stage_comes_up_serves_and_reports() {
    let mut rig = Rig::new();
    assert_eq!(rig.message(Message::Load(load_shard(4, 0..2))), ["unload for 1"]);
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(1) }), ["fetch for 1"]);
    assert_eq!(rig.on(Event::Fetching { turn: Turn(1), bytes_done: 1, bytes_total: 9 }), ["tell Fetching"]);
    let fetched = Event::Fetched { turn: Turn(1), bytes: 9, weights: Weights::default() };
    assert_eq!(rig.on(fetched), ["load for 1"]);
    assert_eq!(rig.done(Done::Loading { turn: Turn(1), bytes_done: 1, bytes_total: 9 }), ["tell Loading"]);
    assert_eq!(rig.done(Done::Loaded { turn: Turn(1), took: None }), ["tell Ready"]);
    rig.link(4, 1);

    assert_eq!(rig.message(open(4)), ["open 5"]);
    let opened = Done::Opened { turn: Turn(1), session: SessionId(5), kv_positions_used: 64 };
    assert_eq!(rig.done(opened), ["tell Opened 5 in 4"]);
    assert_eq!(rig.step(4, 1, 10), ["compute 10"]);
    assert_eq!(rig.done(stepped(4, 1, 10)), ["send 10"]);
    assert_eq!(rig.on(Event::Tick), ["tell report of 1 steps"]);
    assert!(rig.on(Event::Tick).is_empty(), "nothing new to report");
    let sent = Event::Sent { turn: Turn(1), bytes: 100, took: Duration::from_micros(30) };
    assert!(rig.on(sent).is_empty());
    let report = rig.machine.stage.as_ref().unwrap().report;
    assert_eq!((report.rows, report.compute_us, report.hop_us, report.bytes_sent), (3, 2000, 30, 100));
    let (epoch, session) = (PlanEpoch(4), SessionId(5));
    assert_eq!(rig.message(Message::Keep { epoch, session, positions: 64 }), ["keep 64 of 5"]);
    assert_eq!(rig.message(Message::Close { epoch, session }), ["close 5"]);
    assert_eq!(rig.message(Message::Unload { epoch: PlanEpoch(4) }), ["stop fetching", "unlink", "unload for 2"]);
}

#[test]
fn old_and_unknown_plans_change_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.message(open(4)), ["tell Refused 5 in 4"]);
    assert!(rig.message(route(4, Upstream::Coordinator)).is_empty());
    rig.load(4, 1);
    rig.link(4, 1);
    assert!(rig.message(Message::Load(load_shard(3, 0..1))).is_empty());
    assert_eq!(rig.message(Message::Load(load_shard(4, 0..2))), ["tell Ready"], "told again");
    assert_eq!(rig.message(open(5)), ["tell Refused 5 in 5"]);
    assert!(rig.message(Message::Close { epoch: PlanEpoch(3), session: SessionId(5) }).is_empty());
    assert!(rig.message(Message::Unload { epoch: PlanEpoch(3) }).is_empty());

    assert_eq!(rig.step(4, 1, 1), ["compute 1"]);
    assert!(rig.step(3, 1, 2).is_empty(), "a frame of an old plan");
    assert_eq!(rig.step(4, 1, 1), ["tell Fault Frame None"], "a frame that came before");
    assert_eq!(rig.step(5, 1, 2), ["tell Fault Frame None"], "a frame of a plan to come");
    assert!(rig.step(4, 9, 2).is_empty(), "a frame of another link");

    // A new plan while a step is computed: its result goes nowhere.
    rig.message(Message::Load(load_shard(6, 0..1)));
    assert!(rig.done(stepped(4, 1, 1)).is_empty());
    assert_eq!(rig.machine.computing, 0);
    assert!(rig.on(Event::OutgoingBroken { turn: Turn(1), text: "gone".into() }).is_empty());
    assert!(rig.on(Event::Fetched { turn: Turn(1), bytes: 0, weights: Weights::default() }).is_empty());
}

#[test]
fn links_may_come_before_the_route_and_the_route_before_the_shard() {
    let mut rig = Rig::new();
    let arrived = |link, peer, epoch| Event::Arrived { link: LinkId(link), peer, epoch: PlanEpoch(epoch) };
    assert!(rig.on(arrived(1, UPSTREAM, 4)).is_empty());
    assert!(rig.on(arrived(2, STRANGER, 4)).is_empty());
    rig.message(Message::Load(load_shard(4, 0..2)));
    assert_eq!(rig.on(arrived(3, UPSTREAM, 3)), ["refuse 3"]);
    let linked = rig.message(route(4, Upstream::Worker(UPSTREAM)));
    assert_eq!(linked[1..], ["read 1", "refuse 2"]);
    assert!(linked[0].starts_with("link 4 from Worker"));
    assert!(rig.message(route(4, Upstream::Coordinator)).is_empty(), "a second route");
    assert!(rig.on(Event::Outgoing { turn: Turn(1) }).is_empty(), "not loaded yet");
    assert_eq!(rig.on(Event::Frame { link: LinkId(1), frame: frame(4, 1) }), ["tell Fault Frame None"]);

    // Until frames flow the upstream may dial again; a break of its first link is no news.
    assert_eq!(rig.on(arrived(4, UPSTREAM, 4)), ["read 4"]);
    assert!(rig.on(Event::Broken { link: LinkId(1), text: "old".into() }).is_empty());
    rig.done(Done::Unloaded { turn: Turn(1) });
    rig.on(Event::Fetched { turn: Turn(1), bytes: 0, weights: Weights::default() });
    assert_eq!(rig.done(Done::Loaded { turn: Turn(1), took: None }), ["tell Ready", "tell Linked 4"]);
    assert_eq!(rig.on(Event::Frame { link: LinkId(4), frame: frame(4, 1) }), ["compute 1"]);
    assert_eq!(rig.on(arrived(5, UPSTREAM, 4)), ["refuse 5"], "frames have come");
    assert_eq!(rig.on(Event::Broken { link: LinkId(4), text: "cut".into() }), ["tell Fault Link None"]);

    for link in 10..14 {
        assert!(rig.on(arrived(link, STRANGER, 9)).is_empty());
    }
    assert_eq!(rig.on(arrived(14, STRANGER, 9)), ["refuse 10"], "only so many may wait");
}

#[test]
fn a_second_load_takes_over_the_same_shard_and_replaces_another() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    let replaced = ["stop fetching", "unlink"];
    assert_eq!(rig.message(Message::Load(load_shard(5, 0..2))), [replaced[0], replaced[1], "adopt for 2"]);
    assert_eq!(rig.message(open(5)), ["tell Refused 5 in 5"], "not ready yet");
    assert_eq!(rig.done(Done::Loaded { turn: Turn(2), took: None }), ["tell Ready"]);

    assert_eq!(rig.message(Message::Load(load_shard(6, 0..1))), [replaced[0], replaced[1], "unload for 3"]);
    assert_eq!(rig.message(Message::Load(load_shard(7, 0..2))), [replaced[0], replaced[1], "unload for 4"]);
    assert!(rig.done(Done::Unloaded { turn: Turn(3) }).is_empty(), "only the newest is fetched");
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(4) }), ["fetch for 4"]);
    assert!(rig.on(Event::NotFetched { turn: Turn(3), text: "late".into() }).is_empty());
    let why = Event::NotFetched { turn: Turn(4), text: "needs 4 GB".into() };
    assert_eq!(rig.on(why), ["tell Failed"]);

    let nonsense = LoadShard { spec_json: b"{}".to_vec(), ..load_shard(8, 0..2) };
    assert_eq!(rig.message(Message::Load(nonsense)), [replaced[0], replaced[1], "tell Failed"]);
}

#[test]
fn the_shard_outlives_a_lost_coordinator_and_epochs_may_start_over() {
    let mut rig = Rig::new();
    rig.load(40, 1);
    rig.link(40, 1);
    rig.step(40, 1, 1);
    assert_eq!(rig.on(Event::Lost), ["stop fetching", "unlink"]);
    assert!(rig.done(stepped(40, 1, 1)).is_empty());
    assert!(rig.machine.held.is_some());
    rig.on(Event::Joined { coordinator: COORDINATOR });
    assert_eq!(rig.message(Message::Load(load_shard(1, 0..2))), ["adopt for 3"]);
}

#[test]
fn a_damaged_tensor_is_fetched_once_more_and_a_lost_shard_is_not_taken_over() {
    let mut rig = Rig::new();
    rig.message(Message::Load(load_shard(4, 0..2)));
    let turn = Turn(1);
    rig.done(Done::Unloaded { turn });
    let fetched = || Event::Fetched { turn: Turn(1), bytes: 0, weights: Weights::default() };
    let damaged = || {
        let error = EngineError::Read { tensor: "t".into(), reason: "has changed".into() };
        Done::NotLoaded { turn: Turn(1), failure: Failure::Engine(error) }
    };
    rig.on(fetched());
    assert_eq!(rig.done(damaged()), ["fetch for 1"]);
    assert_eq!(rig.on(fetched()), ["load for 1"]);
    assert_eq!(rig.done(damaged()), ["tell Failed"]);

    rig.load(5, 2);
    rig.link(5, 2);
    rig.step(5, 2, 1);
    let Done::Stepped(result) = stepped(5, 2, 1) else { unreachable!() };
    let fault = Fault { epoch: PlanEpoch(5), session: None, code: FaultCode::Internal, text: "bug".into() };
    let lost = Stepped { frame: None, faults: vec![fault], shard: ShardState::Lost, ..*result };
    assert_eq!(rig.done(Done::Stepped(Box::new(lost))), ["tell Fault Internal None"]);
    assert_eq!(rig.message(open(5)), ["tell Refused 5 in 5"]);
    assert_eq!(rig.message(Message::Load(load_shard(6, 0..2))).last().unwrap(), "unload for 3");
}

#[test]
fn frames_stop_coming_when_too_many_are_held() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    for step in 0..FRAMES_HELD {
        assert!(rig.machine.has_room());
        rig.step(4, 1, u32::try_from(step).unwrap());
    }
    assert!(!rig.machine.has_room());
    assert_eq!(rig.done(stepped(4, 1, 0)), ["send 0"]);
    assert!(!rig.machine.has_room(), "computed, but not sent");
    rig.on(Event::Sent { turn: Turn(1), bytes: 1, took: Duration::ZERO });
    assert!(rig.machine.has_room());
    rig.done(stepped(4, 1, 1));
    let broken = Event::OutgoingBroken { turn: Turn(1), text: "cut".into() };
    assert_eq!(rig.on(broken), ["tell Fault Link None"]);
    assert!(rig.done(stepped(4, 1, 2)).is_empty(), "nowhere to send it");
}

#[test]
fn who_wants_to_leave_finishes_the_running_step() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    rig.step(4, 1, 1);
    assert_eq!(rig.on(Event::Asked), ["tell Drain"]);
    assert!(!rig.machine.has_room(), "no further frames");
    assert!(rig.on(Event::Asked).is_empty());
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);
    let sent = Event::Sent { turn: Turn(1), bytes: 1, took: Duration::ZERO };
    assert_eq!(rig.on(sent), ["tell report of 1 steps", "tell Bye", "leave Asked"]);

    let mut idle = Rig::new();
    assert_eq!(idle.message(Message::Ping { stamp: 3 }), ["tell Pong { stamp: 3 }"]);
    assert_eq!(idle.on(Event::Asked), ["tell Drain", "tell Bye", "leave Asked"]);
    assert_eq!(Rig::new().message(Message::Bye { text: "over".into() }), ["leave Dismissed(\"over\")"]);
}
