//! The scheduler against a pipeline made of a queue: random arrivals, cancels and losses, by seed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use qmesh_net::{Sampling, SegmentFlags, Wants};

use super::*;
use crate::generate::{Finish, FinishReason, PromptRows};

#[test]
fn a_request_runs_from_prompt_to_finish() {
    let mut world = World::new(1, limits());
    world.up();
    let session = world.submit(request(vec![3; 20], 5));
    world.drain();
    let story = &world.stories[&session];
    assert_eq!(story.tokens, continuation(&[3; 20], 5));
    let finish = story.finish.as_ref().unwrap();
    assert_eq!((finish.reason, finish.prompt_tokens, finish.generated_tokens), (FinishReason::Length, 20, 5));
    assert!(world.scheduler.is_idle() && world.open.is_empty());
}

#[test]
fn every_row_of_a_scored_prompt_sees_its_next_id() {
    for chunk_rows in [1, 2, 16, 64] {
        let mut world = World::new(1, Limits { chunk_rows, ..limits() });
        world.up();
        let ids: Vec<u32> = (0..50).map(|i| i % 40).collect();
        let session = world.submit(GenerateRequest { prompt_rows: PromptRows::All, ..request(ids.clone(), 0) });
        world.drain();
        let rows = &world.stories[&session].prompt;
        assert_eq!(rows.len(), ids.len(), "chunks of {chunk_rows}");
        let targets: Vec<f32> = rows[..49].iter().map(|r| r.target_logprob).collect();
        assert_eq!(targets, ids[1..].iter().map(|&id| id as f32).collect::<Vec<_>>());
        assert!(rows[49].target_logprob.is_nan());
    }
}

#[test]
fn an_end_token_ends_the_sequence() {
    let mut world = World::new(1, limits());
    world.up();
    let end = continuation(&[7], 3)[2];
    let session = world.submit(GenerateRequest { ends: Arc::new([end]), ..request(vec![7], 30) });
    world.drain();
    let story = &world.stories[&session];
    assert_eq!(story.tokens.last(), Some(&end));
    assert_eq!(story.finish.as_ref().unwrap().reason, FinishReason::End);
}

#[test]
fn bad_requests_are_refused_before_anything_runs() {
    let mut scheduler = Scheduler::new(limits());
    let now = Instant::now();
    let too_long = scheduler.submit(now, request(vec![1; 200], 1)).unwrap_err();
    assert_eq!(too_long, GenerateError::ContextExceeded { prompt_tokens: 200, context: 128 });
    assert!(matches!(scheduler.submit(now, request(vec![], 1)), Err(GenerateError::BadPrompt { .. })));
    assert!(matches!(scheduler.submit(now, request(vec![50], 1)), Err(GenerateError::BadPrompt { .. })));
    for _ in 0..limits().waiting {
        scheduler.submit(now, request(vec![1], 1)).unwrap();
    }
    assert!(matches!(scheduler.submit(now, request(vec![1], 1)), Err(GenerateError::QueueFull { .. })));
}

#[test]
fn a_lost_pipeline_changes_no_text_and_a_late_one_fails_what_waits() {
    let mut world = World::new(2, limits());
    world.up();
    let session = world.submit(request(vec![5; 30], 40));
    for _ in 0..30 {
        world.step();
    }
    assert!(!world.stories[&session].tokens.is_empty());
    world.down();
    world.up();
    world.drain();
    assert_eq!(world.stories[&session].tokens, continuation(&[5; 30], 40));

    let session = world.submit(request(vec![5; 30], 40));
    world.step();
    world.down();
    world.now += limits().resume + Duration::from_secs(1);
    let actions = world.scheduler.expire(world.now, "lost w1");
    world.carry_out(actions);
    assert_eq!(world.stories[&session].failed, Some(GenerateError::WorkerLost { text: "lost w1".to_owned() }));
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_sequence_that_brings_pipelines_down_is_given_up() {
    let mut world = World::new(2, limits());
    let session = world.submit(request(vec![5; 30], 4));
    for _ in 0..=RESTARTS_MOST {
        world.up();
        for _ in 0..2 {
            let actions = world.scheduler.pump(world.now);
            world.carry_out(actions);
            (0..world.stages).for_each(|_| world.scheduler.opened(world.epoch, session));
        }
        world.down();
    }
    assert!(matches!(world.stories[&session].failed, Some(GenerateError::WorkerLost { .. })));
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_fault_of_one_session_leaves_the_others() {
    let mut world = World::new(3, limits());
    world.up();
    let (bad, good) = (world.submit(request(vec![1; 9], 20)), world.submit(request(vec![2; 9], 20)));
    for _ in 0..12 {
        world.step();
    }
    let actions = world.scheduler.failed(world.epoch, bad, "w2: a NaN");
    world.carry_out(actions);
    world.drain();
    assert!(matches!(world.stories[&bad].failed, Some(GenerateError::Fault { .. })));
    assert_eq!(world.stories[&good].tokens, continuation(&[2; 9], 20));
}

#[test]
fn random_worlds_keep_their_books_and_their_texts() {
    for seed in 0..400 {
        let mut world = World::new(seed, limits());
        world.up();
        for _ in 0..300 {
            world.random_move();
            world.step();
            world.check_books();
        }
        if world.scheduler.pipeline.is_none() {
            world.up();
        }
        world.drain();
        world.check_stories();
    }
}

fn limits() -> Limits {
    Limits { context: 128, kv_positions: 512, chunk_rows: 16, vocab: 50, waiting: 40, resume: Duration::from_secs(60) }
}

fn request(ids: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        ids,
        max_tokens,
        sampling: Sampling::default(),
        ends: Arc::new([]),
        prompt_rows: PromptRows::Last,
        client: ClientId(1),
    }
}

/// The model of these tests: the next token is a hash of all ids before it.
fn next_token(ids: &[u32]) -> u32 {
    ids.iter().fold(17_u32, |hash, &id| hash.wrapping_mul(31).wrapping_add(id)) % 50
}

fn continuation(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..tokens {
        ids.push(next_token(&ids));
    }
    ids.split_off(prompt.len())
}

/// What a listener heard.
#[derive(Default)]
struct Story {
    ids: Vec<u32>,
    max_tokens: usize,
    prompt: Vec<Sampled>,
    tokens: Vec<u32>,
    finish: Option<Finish>,
    failed: Option<GenerateError>,
    cancelled: bool,
}

struct World {
    seed: u64,
    random: u64,
    scheduler: Scheduler,
    now: Instant,
    epoch: PlanEpoch,
    stages: usize,
    /// Ids that the stages hold of each open session.
    open: BTreeMap<SessionId, Vec<u32>>,
    unanswered: VecDeque<SessionId>,
    frames: VecDeque<Frame>,
    stories: BTreeMap<SessionId, Story>,
    closed: BTreeSet<SessionId>,
}

impl World {
    fn new(seed: u64, limits: Limits) -> Self {
        Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            scheduler: Scheduler::new(limits),
            now: Instant::now(),
            epoch: PlanEpoch(0),
            stages: 1 + (seed % 4) as usize,
            open: BTreeMap::new(),
            unanswered: VecDeque::new(),
            frames: VecDeque::new(),
            stories: BTreeMap::new(),
            closed: BTreeSet::new(),
        }
    }

    fn up(&mut self) {
        self.epoch = PlanEpoch(self.epoch.0 + 1);
        self.scheduler.pipeline_up(self.epoch, self.stages);
    }

    fn down(&mut self) {
        let actions = self.scheduler.pipeline_down(self.now, "lost w1");
        self.carry_out(actions);
        self.open.clear();
        self.unanswered.clear();
        self.frames.clear();
    }

    fn submit(&mut self, request: GenerateRequest) -> SessionId {
        let story = Story { ids: request.ids.clone(), max_tokens: request.max_tokens, ..Story::default() };
        let session = self.scheduler.submit(self.now, request).unwrap();
        self.stories.insert(session, story);
        session
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    fn random_move(&mut self) {
        match self.below(40) {
            0..=5 if self.scheduler.waiting() < 30 => {
                let prompt: Vec<u32> = (0..1 + self.below(60)).map(|_| self.below(50) as u32).collect();
                let (tokens, client) = (1 + self.below(40) as usize, ClientId(self.below(3)));
                self.submit(GenerateRequest { client, ..request(prompt, tokens) });
            }
            6 => {
                let live: Vec<_> = self.stories.iter().filter(|(_, s)| !s.over()).map(|(&s, _)| s).collect();
                if !live.is_empty() {
                    let session = live[self.below(live.len() as u64) as usize];
                    self.stories.get_mut(&session).unwrap().cancelled = true;
                    let actions = self.scheduler.cancel(session);
                    self.carry_out(actions);
                }
            }
            7 if self.scheduler.pipeline.is_some() => self.down(),
            8..=20 if self.scheduler.pipeline.is_none() => self.up(),
            _ => {}
        }
    }

    /// Lets the scheduler act, then answers one open session and computes one frame.
    fn step(&mut self) {
        let actions = self.scheduler.pump(self.now);
        self.carry_out(actions);
        if let Some(session) = self.unanswered.pop_front() {
            for _ in 0..self.stages {
                self.scheduler.opened(self.epoch, session);
            }
        }
        if let Some(frame) = self.frames.pop_front() {
            let (sampled, rows) = self.compute(frame);
            let actions = self.scheduler.stepped(self.now, &sampled, rows);
            self.carry_out(actions);
        }
    }

    fn drain(&mut self) {
        for _ in 0..100_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("seed {}: the scheduler never became idle", self.seed);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open(open) => {
                    assert!(self.open.insert(open.session, vec![]).is_none(), "seed {}: opened twice", self.seed);
                    self.unanswered.push_back(open.session);
                }
                Action::Close(session) => {
                    assert!(self.open.remove(&session).is_some(), "seed {}: {session} was not open", self.seed);
                    self.unanswered.retain(|&s| s != session);
                    assert!(self.closed.insert(session), "seed {}: {session} closed twice", self.seed);
                }
                Action::Frame(frame) => self.frames.push_back(frame),
                Action::Deliver(session, event) => {
                    let story = self.stories.get_mut(&session).unwrap();
                    assert!(!story.over() || story.cancelled, "seed {}: an event after the last", self.seed);
                    match event {
                        GenerateEvent::Prompt(rows) => story.prompt = rows,
                        GenerateEvent::Token(row) => story.tokens.push(row.token),
                        GenerateEvent::Finished(finish) => story.finish = Some(finish),
                        GenerateEvent::Failed(error) => story.failed = Some(error),
                    }
                }
            }
        }
    }

    /// What the stages do with a frame: extend the sessions' ids, and sample where it is wanted.
    fn compute(&mut self, frame: Frame) -> (Frame, Vec<Sampled>) {
        let mut rest = frame.ids.as_slice();
        let (mut segments, mut rows) = (vec![], vec![]);
        for segment in &frame.segments {
            let (ids, after) = rest.split_at(segment.rows as usize);
            rest = after;
            let held = self.open.get_mut(&segment.session).expect("rows of a session that is not open");
            assert!(segment.position as usize <= held.len(), "seed {}: a gap", self.seed);
            held.truncate(segment.position as usize);
            held.extend(ids);
            let first = match segment.wants {
                Wants::None => segment.rows,
                Wants::Last => segment.rows - 1,
                Wants::All => 0,
            };
            for row in first..segment.rows {
                let end = (segment.position + row + 1) as usize;
                let target = ids.get(row as usize + 1).map_or(f32::NAN, |&id| id as f32);
                rows.push(sampled(next_token(&held[..end]), target));
            }
            let (position, rows) = (segment.position + first, segment.rows - first);
            segments.push(Segment { position, rows, flags: SegmentFlags::default(), ..*segment });
        }
        (Frame { kind: FrameKind::Sampled, segments, ..frame }, rows)
    }

    fn check_books(&self) {
        let seed = self.seed;
        assert!(
            self.scheduler.positions_reserved() <= limits().kv_positions,
            "seed {seed}: more promised than there is"
        );
        assert!(self.frames.len() <= CREDITS_PER_STAGE * self.stages, "seed {seed}: more in flight than credits");
        assert!(self.frames.iter().all(|f| f.ids.len() <= limits().chunk_rows), "seed {seed}: a step too large");
    }

    fn check_stories(&self) {
        for (session, story) in &self.stories {
            let expected = continuation(&story.ids, story.max_tokens.min(128 - story.ids.len()));
            // So many losses in so few steps may well cost a sequence its last restart.
            let given_up = matches!(story.failed, Some(GenerateError::WorkerLost { .. }));
            if story.cancelled || given_up {
                assert!(expected.starts_with(&story.tokens), "seed {}: {session} said something else", self.seed);
            } else {
                assert_eq!(story.tokens, expected, "seed {}: {session}", self.seed);
                assert!(story.finish.is_some(), "seed {}: {session} never finished", self.seed);
            }
        }
        assert!(self.open.is_empty(), "seed {}: sessions left open", self.seed);
    }
}

impl Story {
    fn over(&self) -> bool {
        self.finish.is_some() || self.failed.is_some() || self.cancelled
    }
}

fn sampled(token: u32, target_logprob: f32) -> Sampled {
    Sampled { token, logprob: 0.0, target_logprob, digest: 0, top: vec![] }
}
