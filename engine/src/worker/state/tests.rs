//! Sequences of events, and the actions that must follow.

mod masks;
mod side_by_side;

use bytes::Bytes;
use qmesh_net::{
    Downstream, Fault, Frame, FrameKind, Route, Sampling, Sections, SessionId, StageIndex, StepId, StepTimes, Upstream,
    WeightAskers,
};

use super::*;
use crate::{
    backend::HeldTensor,
    step::{Samples, StepOutput},
    worker::{
        compute::{ShardState, Stepped, scripted::ScriptedShard},
        links::LinkNews,
        tests::load_shard,
    },
};

const COORDINATOR: PeerId = PeerId([1; 32]);
const UPSTREAM: PeerId = PeerId([2; 32]);
const STRANGER: PeerId = PeerId([3; 32]);

/// A machine, a clock and shorthands; actions are compared as text, without what only people read.
struct Rig {
    state: WorkerState,
    now: Instant,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self { state: WorkerState::default(), now: Instant::now() };
        rig.on(Event::Joined { coordinator: COORDINATOR });
        rig
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        self.now += Duration::from_secs(1);
        self.state.handle(self.now, event).iter().filter_map(brief).collect()
    }

    fn message(&mut self, message: Message) -> Vec<String> {
        self.on(Event::Message(message))
    }

    fn done(&mut self, done: Done) -> Vec<String> {
        self.on(Event::Done(done))
    }

    /// Loads layers 0-1 of 3 as the first of two stages, the plan `epoch` being the `turn`th.
    fn load(&mut self, epoch: u32, turn: u64) {
        assert_eq!(self.message(Message::Load(load_shard(epoch, 0..2))), [format!("fetch for {turn}")]);
        self.come_up(turn);
    }

    /// Has the tensors of the `turn`th plan, and loads them.
    fn come_up(&mut self, turn: u64) {
        assert_eq!(self.on(fetched(turn)), [format!("load for {turn}")]);
        let loaded = self.loaded(turn);
        assert_eq!(self.done(loaded), [format!("activate {turn}"), "tell Ready".to_owned()]);
    }

    /// What is said when the `turn`th plan's shard is loaded.
    fn loaded(&self, turn: u64) -> Done {
        let turn = Turn(turn);
        let stage = self.state.stages.iter().find(|stage| stage.turn == turn).unwrap();
        Done::Loaded { turn, loaded: loaded(&stage.assignment), took: Duration::ZERO }
    }

    fn link(&mut self, epoch: u32, turn: u64) {
        self.message(route(epoch, Upstream::Coordinator));
        self.on(Event::Link(LinkNews::DownstreamStands { turn: Turn(turn), way: None }));
        let arrived = Event::Link(LinkNews::Arrived { link: LinkId(turn), peer: COORDINATOR, epoch: PlanEpoch(epoch) });
        assert_eq!(self.on(arrived), [format!("read {turn}"), format!("tell Linked {epoch}")]);
    }

    fn step(&mut self, epoch: u32, turn: u64, step: u32) -> Vec<String> {
        self.on(Event::Frame { link: LinkId(turn), frame: frame(epoch, step) })
    }
}

fn brief(action: &Action) -> Option<String> {
    Some(match action {
        Action::Tell(Message::ShardStatus(status)) => format!("tell {:?}", status.phase),
        Action::Tell(Message::Linked { epoch, .. }) => format!("tell Linked {epoch}"),
        Action::Tell(Message::Opened { epoch, session }) => format!("tell Opened {session} in {epoch}"),
        Action::Tell(Message::Refused { epoch, session, .. }) => format!("tell Refused {session} in {epoch}"),
        Action::Tell(Message::Fault(fault)) => format!("tell Fault {:?} {:?}", fault.code, fault.session.map(|s| s.0)),
        Action::Tell(Message::StageReport(report)) => format!("tell report of {} steps", report.steps),
        Action::Tell(Message::Bye { .. }) => "tell Bye".into(),
        Action::Tell(other) => format!("tell {other:?}"),
        Action::Fetch(request) => format!("fetch for {}", request.turn.0),
        Action::Load(request) => format!("load for {}", request.turn.0),
        Action::Compute(Command::Activate { turn, .. }) => format!("activate {}", turn.0),
        Action::Compute(Command::Unload { turn }) => format!("unload {}", turn.0),
        Action::Compute(Command::Open { open, .. }) => format!("open {}", open.session),
        Action::Compute(Command::Close { session, .. }) => format!("close {session}"),
        Action::Compute(Command::Keep { session, positions, .. }) => format!("keep {positions} of {session}"),
        Action::Compute(Command::Step { frame, .. }) => format!("compute {}", frame.step),
        Action::Link { route, .. } => format!("link {} from {:?}", route.epoch, route.upstream),
        Action::Read { link, .. } => format!("read {}", link.0),
        Action::Refuse(link) => format!("refuse {}", link.0),
        Action::Send { frame, .. } => format!("send {}", frame.step),
        Action::Leave(departure) => format!("leave {departure:?}"),
        Action::StopFetch { turn } => format!("stop fetching for {}", turn.0),
        Action::Unlink { turn } => format!("unlink {}", turn.0),
        Action::Measure(_) => "measure".into(),
        Action::Rendezvous(errand) => format!("{errand:?}"),
        Action::Say(_) | Action::Offer(_) => return None,
    })
}

fn fetched(turn: u64) -> Event {
    Event::Fetch(FetchNews::Fetched {
        turn: Turn(turn),
        origins: Origins::coordinator(7),
        places: TensorPlaces::default(),
    })
}

/// A shard that computes nothing, and each of its tensors: the state machine only hands them on.
fn loaded(assignment: &Assignment) -> Loaded {
    let tensors = assignment.spec.tensors.iter().map(|tensor| (tensor.role, HeldTensor::new(())));
    let shard = Box::new(ScriptedShard(|_| Ok(StepOutput::Sampled(Samples::default()))));
    Loaded { shard, tensors: tensors.collect() }
}

fn route(epoch: u32, upstream: Upstream) -> Message {
    let downstream = Downstream::Worker { peer: STRANGER, addresses: vec!["10.0.0.1:1".into()] };
    let sections = Sections::default();
    Message::Route(Route { epoch: PlanEpoch(epoch), stage: StageIndex(0), upstream, downstream, sections })
}

fn open(epoch: u32) -> Message {
    let (epoch, session) = (PlanEpoch(epoch), SessionId(5));
    Message::Open(OpenSession { epoch, session, max_positions: 8, sampling: Sampling::default(), prefix: None })
}

fn frame(epoch: u32, step: u32) -> Frame {
    let (kind, payload, sections) = (FrameKind::Tokens, Bytes::new(), Sections::default());
    let (epoch, step) = (PlanEpoch(epoch), StepId(step));
    Frame {
        kind,
        epoch,
        step,
        width: 0,
        times: StepTimes::default(),
        segments: Vec::new(),
        ids: Vec::new(),
        payload,
        sections,
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
    assert_eq!(rig.message(Message::Load(load_shard(4, 0..2))), ["fetch for 1"]);
    let origins = Origins::coordinator(1);
    let progress = FetchNews::Progress { turn: Turn(1), bytes_done: 1, bytes_total: 9, origins };
    assert_eq!(rig.on(Event::Fetch(progress)), ["tell Fetching"]);
    let full = Event::Fetch(FetchNews::DiskFull { turn: Turn(1), text: "no room".into() });
    assert_eq!(rig.on(full), ["tell Fetching"]);
    assert_eq!(rig.on(fetched(1)), ["load for 1"]);
    assert_eq!(rig.done(Done::Loading { turn: Turn(1), bytes_done: 1, bytes_total: 9 }), ["tell Loading"]);
    let loaded = rig.loaded(1);
    assert_eq!(rig.done(loaded), ["activate 1", "tell Ready"]);
    rig.link(4, 1);

    assert_eq!(rig.message(open(4)), ["open 5"]);
    let opened = Done::Opened { turn: Turn(1), session: SessionId(5), kv_positions_used: 64 };
    assert_eq!(rig.done(opened), ["tell Opened 5 in 4"]);
    assert_eq!(rig.step(4, 1, 10), ["compute 10"]);
    assert_eq!(rig.done(stepped(4, 1, 10)), ["send 10"]);
    assert_eq!(rig.on(Event::Tick), ["tell report of 1 steps"]);
    assert!(rig.on(Event::Tick).is_empty(), "nothing new to report");
    let sent = Event::Link(LinkNews::Sent { turn: Turn(1), bytes: 100, took: Duration::from_micros(30) });
    assert!(rig.on(sent).is_empty());
    let report = &rig.state.stages[0].report;
    assert_eq!((report.rows, report.compute_us, report.hop_us, report.bytes_sent), (3, 2000, 30, 100));
    let (epoch, session) = (PlanEpoch(4), SessionId(5));
    assert_eq!(rig.message(Message::Keep { epoch, session, positions: 64 }), ["keep 64 of 5"]);
    assert_eq!(rig.message(Message::Close { epoch, session }), ["close 5"]);
    assert_eq!(rig.message(Message::Unload { epoch: PlanEpoch(4) }), ["unload 1", "unlink 1"]);
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

    // The plan is over while a step is computed: its result goes nowhere.
    assert_eq!(rig.message(Message::Unload { epoch: PlanEpoch(4) }), ["unload 1", "unlink 1"]);
    assert!(rig.done(stepped(4, 1, 1)).is_empty());
    assert!(rig.step(4, 1, 2).is_empty());
    assert!(rig.on(Event::Link(LinkNews::DownstreamBroken { turn: Turn(1), text: "gone".into() })).is_empty());
    assert!(rig.on(Event::Link(LinkNews::UpstreamBroken { link: LinkId(1), text: "gone".into() })).is_empty());
    assert!(rig.on(fetched(1)).is_empty());
}

#[test]
fn links_may_come_before_the_route_and_the_route_before_the_shard() {
    let mut rig = Rig::new();
    let arrived =
        |link, peer, epoch| Event::Link(LinkNews::Arrived { link: LinkId(link), peer, epoch: PlanEpoch(epoch) });
    assert!(rig.on(arrived(1, UPSTREAM, 4)).is_empty());
    assert!(rig.on(arrived(2, STRANGER, 4)).is_empty());
    rig.message(Message::Load(load_shard(4, 0..2)));
    assert_eq!(rig.on(arrived(3, UPSTREAM, 3)), ["refuse 3"]);
    let linked = rig.message(route(4, Upstream::Worker(UPSTREAM)));
    assert_eq!(linked[1..], ["read 1", "refuse 2"]);
    assert!(linked[0].starts_with("link 4 from Worker"));
    assert!(rig.message(route(4, Upstream::Coordinator)).is_empty(), "a second route");
    assert!(rig.on(Event::Link(LinkNews::DownstreamStands { turn: Turn(1), way: None })).is_empty(), "not loaded yet");
    assert_eq!(rig.on(Event::Frame { link: LinkId(1), frame: frame(4, 1) }), ["tell Fault Frame None"]);

    // Until frames flow the upstream may dial again; a break of its first link is no news.
    assert_eq!(rig.on(arrived(4, UPSTREAM, 4)), ["read 4"]);
    assert!(rig.on(Event::Link(LinkNews::UpstreamBroken { link: LinkId(1), text: "old".into() })).is_empty());
    rig.on(fetched(1));
    let loaded = rig.loaded(1);
    assert_eq!(rig.done(loaded), ["activate 1", "tell Ready", "tell Linked 4"]);
    assert_eq!(rig.on(Event::Frame { link: LinkId(4), frame: frame(4, 1) }), ["compute 1"]);
    assert_eq!(rig.on(arrived(5, UPSTREAM, 4)), ["refuse 5"], "frames have come");
    assert_eq!(
        rig.on(Event::Link(LinkNews::UpstreamBroken { link: LinkId(4), text: "cut".into() })),
        ["tell Fault Link None"]
    );

    for link in 10..14 {
        assert!(rig.on(arrived(link, STRANGER, 9)).is_empty());
    }
    assert_eq!(rig.on(arrived(14, STRANGER, 9)), ["refuse 10"], "only so many may wait");
}

#[test]
fn the_weights_outlive_a_lost_coordinator_and_epochs_may_start_over() {
    let mut rig = Rig::new();
    rig.load(40, 1);
    rig.link(40, 1);
    rig.step(40, 1, 1);
    assert_eq!(rig.on(Event::Lost), ["unload 1", "unlink 1"]);
    assert!(rig.done(stepped(40, 1, 1)).is_empty());
    assert!(!rig.state.kept.is_empty());
    rig.on(Event::Joined { coordinator: COORDINATOR });
    // Not before the old shard's KV is gone.
    assert!(rig.message(Message::Load(load_shard(1, 0..2))).is_empty());
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(1) }), ["fetch for 2"]);
    assert_eq!(rig.state.stages[0].own_bytes(), 0, "all was kept");
    assert!(rig.state.kept.is_empty());
    rig.come_up(2);
}

#[test]
fn damaged_tensors_are_looked_for_once_and_a_lost_shard_leaves_its_weights() {
    let mut rig = Rig::new();
    rig.message(Message::Load(load_shard(4, 0..2)));
    let damaged = || {
        let error = EngineError::Read { tensor: "t".into(), reason: "has changed".into() };
        Event::Done(Done::NotLoaded { turn: Turn(1), failure: Failure::Engine(error) })
    };
    rig.on(fetched(1));
    let again = rig.state.handle(rig.now, damaged());
    assert!(
        matches!(again[..], [Action::Fetch(FetchRequest { turn: Turn(1), scrutiny: Scrutiny::Contents, .. })]),
        "{again:?}"
    );
    assert_eq!(rig.on(fetched(1)), ["load for 1"]);
    assert_eq!(rig.on(damaged()), ["tell Failed"]);

    assert_eq!(rig.message(Message::Load(load_shard(5, 0..2))), ["unload 1"], "what failed makes way");
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(1) }), ["fetch for 2"]);
    rig.come_up(2);
    rig.link(5, 2);
    rig.step(5, 2, 1);
    let Done::Stepped(result) = stepped(5, 2, 1) else { unreachable!() };
    let fault = Fault { epoch: PlanEpoch(5), session: None, code: FaultCode::Internal, text: "bug".into() };
    let lost = Stepped { frame: None, faults: vec![fault], shard: ShardState::Lost, ..*result };
    assert_eq!(rig.done(Done::Stepped(Box::new(lost))), ["tell Fault Internal None"]);
    assert_eq!(rig.message(open(5)), ["tell Refused 5 in 5"]);
    assert_eq!(rig.message(Message::Load(load_shard(6, 0..2))), ["unload 2", "unlink 2"]);
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(2) }), ["fetch for 3"]);
    assert_eq!(rig.state.stages[0].own_bytes(), 0);
}

#[test]
fn a_compute_thread_that_ends_is_a_fault_of_every_plan() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    rig.step(4, 1, 1);
    rig.load(5, 2);
    assert_eq!(rig.done(Done::Ended), ["tell Fault Internal None"; 2]);
    assert_eq!(rig.message(open(4)), ["tell Refused 5 in 4"]);
    // The next plan makes a new start, with the weights that are there.
    assert_eq!(rig.message(Message::Load(load_shard(6, 0..2))), ["unload 1", "unlink 1", "unload 2"]);
    rig.done(Done::Unloaded { turn: Turn(1) });
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(2) }), ["fetch for 3"]);
    assert_eq!(rig.state.stages[0].own_bytes(), 0);
    rig.come_up(3);
}

#[test]
fn frames_stop_coming_when_too_many_are_held() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    for step in 0..FRAMES_HELD {
        assert!(rig.state.has_room(Turn(1)));
        rig.step(4, 1, u32::try_from(step).unwrap());
    }
    assert!(!rig.state.has_room(Turn(1)));
    assert_eq!(rig.done(stepped(4, 1, 0)), ["send 0", "compute 2"]);
    assert!(!rig.state.has_room(Turn(1)), "computed, but not sent");
    rig.on(Event::Link(LinkNews::Sent { turn: Turn(1), bytes: 1, took: Duration::ZERO }));
    assert!(rig.state.has_room(Turn(1)));
    rig.done(stepped(4, 1, 1));
    let broken = Event::Link(LinkNews::DownstreamBroken { turn: Turn(1), text: "cut".into() });
    assert_eq!(rig.on(broken), ["tell Fault Link None"]);
    assert!(rig.done(stepped(4, 1, 2)).is_empty(), "nowhere to send it");
}

#[test]
fn frames_that_come_after_the_link_downstream_broke_are_nobodys_fault() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    let broken = Event::Link(LinkNews::DownstreamBroken { turn: Turn(1), text: "cut".into() });
    assert_eq!(rig.on(broken), ["tell Fault Link None"]);
    assert!(rig.step(4, 1, 1).is_empty());
}

#[test]
fn who_wants_to_leave_finishes_the_running_step() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    rig.step(4, 1, 1);
    assert_eq!(rig.on(Event::Asked), ["tell Drain"]);
    assert!(!rig.state.has_room(Turn(1)), "no further frames");
    assert!(rig.on(Event::Asked).is_empty());
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);
    let sent = Event::Link(LinkNews::Sent { turn: Turn(1), bytes: 1, took: Duration::ZERO });
    assert_eq!(rig.on(sent), ["tell report of 1 steps", "tell Bye", "leave Asked"]);

    let mut idle = Rig::new();
    assert_eq!(idle.on(Event::Asked), ["tell Drain", "tell Bye", "leave Asked"]);
    assert_eq!(Rig::new().message(Message::Bye { text: "over".into() }), ["leave Dismissed(\"over\")"]);
}

#[test]
fn what_others_may_ask_for_is_offered_as_long_as_the_plan_lives() {
    let offers = |rig: &mut Rig, event: Event| -> Vec<(Vec<PeerId>, usize)> {
        rig.now += Duration::from_secs(1);
        let offer = |action| {
            let Action::Offer(offer) = action else { return None };
            Some((offer.askers.into_iter().collect(), offer.coming.len()))
        };
        rig.state.handle(rig.now, event).into_iter().filter_map(offer).collect()
    };
    let mut rig = Rig::new();
    assert_eq!(offers(&mut rig, Event::Message(Message::Load(load_shard(1, 0..2)))), [], "nobody is named");
    let mut named = load_shard(2, 0..3);
    WeightAskers { peers: vec![UPSTREAM], first: vec![0] }.put(&mut named.sections).unwrap();
    assert_eq!(offers(&mut rig, Event::Message(Message::Load(named))), [(vec![UPSTREAM], 1)]);
    assert_eq!(offers(&mut rig, fetched(2)), [(vec![UPSTREAM], 0)], "all is at hand");
    assert_eq!(offers(&mut rig, Event::Tick), []);
    let unload = Message::Unload { epoch: PlanEpoch(2) };
    assert_eq!(offers(&mut rig, Event::Message(unload)), [(Vec::new(), 0)]);
}

#[test]
fn a_plan_whose_sources_make_no_sense_is_refused_by_its_section() {
    let mut rig = Rig::new();
    let mut load = load_shard(1, 0..2);
    load.sections.set(2, vec![1, 2, 3]);
    let actions = rig.state.handle(rig.now, Event::Message(Message::Load(load)));
    let [Action::Tell(Message::ShardStatus(status))] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(status.phase, ShardPhase::Failed);
    assert!(status.text.contains("section 2 does not parse"), "{}", status.text);
}
