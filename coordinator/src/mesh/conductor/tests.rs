//! The conductor with one worker, which the test plays.

use std::{iter, net::SocketAddr, sync::Arc, time::Duration};

use qmesh_models::weights::ModelFile;
use qmesh_net::{
    FrameKind, MaskedRows, PeerId, Sampled, Sampling, Sections, Segment, ShardPhase, ShardStatus, StepId, Wants,
};

use super::*;
use crate::{
    generate::{ClientId, PromptRows},
    grammar::fifty,
    mesh::{
        config::{PrefixReuse, Speculation, Workers},
        events::PlanReason,
    },
};

#[test]
fn a_mesh_tells_its_life_from_the_first_worker_to_the_last_token() {
    let mut world = World::new();
    world.serve();
    assert!(
        matches!(
            &world.events[..],
            [MeshEvent::WorkerJoined { worker, .. }, MeshEvent::PlanMade { epoch: 1, why: PlanReason::First, stages }]
                if worker == "a" && (stages[0].first_layer, stages[0].end_layer) == (0, 3)
        ),
        "{:?}",
        world.events
    );
    world.events.clear();
    let session = world.conductor.submit(world.now, request()).unwrap();
    world.play();
    let (request, end) = (session.0, RequestEnd::Finished { prompt_tokens: 3, generated_tokens: 2 });
    let started = MeshEvent::RequestStarted { request, prompt_tokens: 3, max_tokens: 2, key: Some("anna".to_owned()) };
    assert_eq!(world.events, [started, MeshEvent::RequestEnded { request, end }]);
    assert!(matches!(
        world.told[..],
        [GenerateEvent::Prefilled { .. }, GenerateEvent::Token(_), GenerateEvent::Token(_), GenerateEvent::Finished(_)]
    ));
    assert!(world.conductor.is_idle());
    world.events.clear();
    world.conductor.left(world.now, A, "timed out");
    world.conductor.left(world.now, A, "timed out");
    world.play();
    assert_eq!(world.events, [MeshEvent::WorkerLeft { worker: "a".to_owned(), reason: "timed out".to_owned() }]);
    assert!(matches!(world.conductor.submit(world.now, self::request()), Err(GenerateError::NotReady { .. })));
}

#[test]
fn masks_go_to_the_last_stage_before_their_step() {
    let mut world = World::new();
    world.serve();
    let grammar = Some(fifty::grammar("5{2}"));
    world.conductor.submit(world.now, GenerateRequest { grammar, max_tokens: 9, ..request() }).unwrap();
    world.play();
    assert_eq!(world.masks.iter().map(|(_, position)| *position).collect::<Vec<_>>(), [2, 3, 4]);
    // The worker says 5 where only an end may follow: its word is not taken.
    let [.., GenerateEvent::Failed(GenerateError::Grammar(_))] = &world.told[..] else { panic!("{:?}", world.told) };
    assert!(world.conductor.is_idle());
}

#[test]
fn who_breaks_the_protocol_is_hung_up_on_by_name() {
    let mut world = World::new();
    world.serve();
    world.events.clear();
    world.conductor.said(world.now, A, Message::Linked { epoch: PlanEpoch(9), sections: Sections::default() });
    world.play();
    let text = "it spoke of plan 9, which was never made".to_owned();
    assert_eq!(world.hung_up, [(A, text.clone())]);
    assert_eq!(world.events, [MeshEvent::FaultSeen { worker: "a".to_owned(), text }]);
}

#[test]
fn a_stage_says_what_of_its_kv_cache_is_promised() {
    let mut world = World::new();
    world.serve();
    let kv = |world: &World| {
        let stage = &world.conductor.status(world.now, |_| 0.0).stages[0];
        (stage.kv_bytes, stage.kv_bytes_used)
    };
    let (all, used) = kv(&world);
    assert!(all > 0 && used == 0, "{used} of {all}");
    world.conductor.submit(world.now, request()).unwrap();
    world.conductor.pump(world.now);
    assert_eq!(kv(&world), (all, all), "there is one page");
}

#[test]
fn what_follows_from_lost_frames_is_a_plan_anew() {
    let mut world = World::new();
    world.serve();
    world.events.clear();
    let session = world.conductor.submit(world.now, request()).unwrap();
    world.conductor.frames_lost(world.now, PlanEpoch(1));
    assert_eq!(world.conductor.status(world.now, |_| 0.0).waiting, 1);
    world.conductor.tick(world.now);
    world.play();
    assert!(
        matches!(
            &world.events[..],
            [
                MeshEvent::RequestStarted { .. },
                MeshEvent::PlanMade { epoch: 2, why: PlanReason::Lost, .. },
                MeshEvent::RequestEnded { request, end: RequestEnd::Finished { .. } }
            ] if *request == session.0
        ),
        "{:?}",
        world.events
    );
    assert_eq!(world.closed, [PlanEpoch(1)]);
}

#[test]
fn who_stops_listening_is_cancelled_once() {
    let mut world = World::new();
    world.serve();
    world.events.clear();
    let session = world.conductor.submit(world.now, request()).unwrap();
    world.conductor.cancel(world.now, session);
    world.conductor.cancel(world.now, session);
    world.play();
    let ended = MeshEvent::RequestEnded { request: session.0, end: RequestEnd::Cancelled };
    assert_eq!(world.events[1..], [ended]);
}

struct World {
    conductor: Conductor,
    now: Instant,
    events: Vec<MeshEvent>,
    told: Vec<GenerateEvent>,
    hung_up: Vec<(WorkerId, String)>,
    /// Steps and positions for which masks have come, and steps whose frames have.
    masks: Vec<(StepId, u32)>,
    frames: Vec<StepId>,
    /// Pipelines that get no more frames.
    closed: Vec<PlanEpoch>,
}

impl World {
    fn new() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
        let spec = ModelFile::open(path).unwrap().spec().clone();
        let limits = Limits {
            context: 64,
            kv_positions: 64,
            sessions: usize::MAX,
            chunk_rows: 16,
            vocab: spec.vocab,
            hidden: spec.hidden,
            waiting: 4,
            resume: Duration::from_secs(60),
            prefix_reuse: PrefixReuse::Off,
            speculation: Speculation::Off,
            draft_model: None,
        };
        let planned = PlannedModel {
            name: "tiny".to_owned(),
            id: [0; 32],
            hashes: vec![[7; 32]; spec.tensors.len()],
            spec,
            context: 64,
            kv_positions: 64,
            chunk_rows: 16,
        };
        let formation = Formation::new(Workers::Exactly(1));
        let now = Instant::now();
        let conductor = Conductor::new(now, planned, formation, limits);
        let (events, told, hung_up, masks, frames, closed) = Default::default();
        Self { conductor, now, events, told, hung_up, masks, frames, closed }
    }

    /// Lets the worker in and plays it until the mesh is ready.
    fn serve(&mut self) {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let (name, peer) = ("a".to_owned(), PeerId([1; 32]));
        self.conductor.joined(self.now, A, Joined::new(name, peer, address, 1 << 30, 1));
        self.conductor.tick(self.now);
        self.play();
        let status = self.conductor.status(self.now, |_| 0.0);
        assert_eq!(status.state, MeshState::Ready, "{}: {:?}, {:?}", status.text, self.hung_up, self.events);
    }

    /// Carries out everything, until nothing more comes of it.
    fn play(&mut self) {
        loop {
            self.conductor.pump(self.now);
            let actions: Vec<_> = iter::from_fn(|| self.conductor.next_action()).collect();
            if actions.is_empty() {
                return;
            }
            actions.into_iter().for_each(|action| self.carry_out(action));
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Send(A, message) => self.hear(message),
            Action::Send(worker, message) => panic!("nobody is {worker}: {message:?}"),
            Action::HangUp(worker, why) => self.hung_up.push((worker, why)),
            Action::Relay(grant) => panic!("one worker needs no relay: {grant:?}"),
            Action::OpenFrames(worker, _) => assert_eq!(worker, A),
            Action::CloseFrames(epoch) => self.closed.push(epoch),
            Action::Frame(frame) => {
                self.frames.push(frame.step);
                let waiting = MaskedRows::places(&frame).into_iter().map(|(_, position)| (frame.step, position));
                assert!(self.masks.ends_with(&waiting.collect::<Vec<_>>()), "masks come right before their frame");
                self.conductor.sampled(self.now, A, &answer(frame));
            }
            Action::Draft(order) => panic!("nobody drafts here: {order:?}"),
            Action::Tell(_, event) => self.told.push(event),
            Action::TellNoMore(_) => {}
            Action::Publish(event) => self.events.push(event),
        }
    }

    /// The worker hears something, and answers.
    fn hear(&mut self, message: Message) {
        let answer = if let Message::Load(load) = message {
            Message::ShardStatus(ShardStatus {
                epoch: load.epoch,
                phase: ShardPhase::Ready,
                bytes_done: 1,
                bytes_total: 1,
                text: String::new(),
                peak_memory_bytes: 1,
                sections: Sections::default(),
            })
        } else if let Message::Route(route) = message {
            Message::Linked { epoch: route.epoch, sections: Sections::default() }
        } else if let Message::Open(open) = message {
            Message::Opened { epoch: open.epoch, session: open.session }
        } else {
            if let Message::Mask(mask) = message {
                assert!(!self.frames.contains(&mask.step), "before its frame");
                self.masks.push((mask.step, mask.position));
            }
            return;
        };
        self.conductor.said(self.now, A, answer);
    }
}

/// The frame that comes out of the only stage: token 5 after every segment that wants one.
fn answer(frame: Frame) -> Frame {
    let sampled = Sampled { token: 5, logprob: 0.0, target_logprob: f32::NAN, digest: 0, top: vec![] };
    let last = |s: &Segment| Segment { position: s.position + s.rows - 1, rows: 1, ..*s };
    let segments: Vec<_> = frame.segments.iter().filter(|s| s.wants != Wants::None).map(last).collect();
    let (width, payload) = Sampled::encode_rows(&vec![sampled; segments.len()]);
    let ids = vec![0; segments.len()];
    Frame { kind: FrameKind::Sampled, width, payload, segments, ids, ..frame }
}

fn request() -> GenerateRequest {
    GenerateRequest {
        ids: vec![1, 2, 3],
        max_tokens: 2,
        sampling: Sampling::default(),
        ends: Arc::new([]),
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: ClientId(0),
        key: Some("anna".into()),
    }
}

const A: WorkerId = WorkerId(1);
