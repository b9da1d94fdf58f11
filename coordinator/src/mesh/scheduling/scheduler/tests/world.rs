//! A pipeline made of a queue: stages that take their time and links that do, on a clock of their own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use qmesh_net::{FrameKind, Mask, MaskedRows, TokenMask, Trails, Wants};

use super::{drafted::WorldDrafter, *};
use crate::{
    generate::{Finish, Pooling, PromptRows},
    grammar::CompiledGrammar,
    mesh::scheduling::pool::Pool,
};

/// What a listener heard.
#[derive(Default)]
pub(super) struct Story {
    pub(super) ids: Vec<u32>,
    pub(super) max_tokens: usize,
    pub(super) grammar: Option<Arc<CompiledGrammar>>,
    pooling: Option<Pooling>,
    pooled: Option<Vec<f32>>,
    pub(super) prompt: Vec<Sampled>,
    /// How far the prompt was, as it was told.
    pub(super) progress: Vec<usize>,
    pub(super) cached: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) finish: Option<Finish>,
    pub(super) failed: Option<GenerateError>,
    pub(super) cancelled: bool,
}

/// How long things take.
#[derive(Clone, Copy)]
pub(super) struct WorldPace {
    /// Of a step of one stage.
    pub(super) base: Duration,
    /// More for each row.
    pub(super) row: Duration,
    /// Of a link; there is one more than stages.
    pub(super) hop: Duration,
    /// By how much the time of a stage may differ, either way.
    pub(super) uneven: f64,
    /// Rows that a step computes at a time: it takes as long as for so many times a whole number.
    pub(super) tile: usize,
    /// Share of the steps of a stage that somebody else on the machine makes twice as long.
    pub(super) disturbed: f64,
}

/// Stages whose steps take what their rows take, whoever else is on the machine.
pub(super) const EVEN: WorldPace =
    WorldPace { base: Duration::ZERO, row: Duration::ZERO, hop: Duration::ZERO, uneven: 0.0, tile: 1, disturbed: 0.0 };

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) random: u64,
    pub(super) scheduler: Scheduler,
    pub(super) now: Instant,
    pub(super) epoch: PlanEpoch,
    epochs: u32,
    pub(super) stages: usize,
    /// Ids that the stages hold of each open session.
    pub(super) open: BTreeMap<SessionId, Vec<u32>>,
    /// The same of the pipeline that sequences follow to, with its epoch.
    pub(super) next: Option<(PlanEpoch, BTreeMap<SessionId, Vec<u32>>)>,
    pub(super) unanswered: VecDeque<(PlanEpoch, SessionId)>,
    /// What has come for rows of frames that have not.
    pub(super) masks: BTreeMap<(PlanEpoch, StepId, SessionId, u32), TokenMask>,
    /// In order, with when they come back and where their time went.
    pub(super) frames: VecDeque<(Instant, StepTimes, Frame)>,
    /// When each stage has done what it was given.
    free: Vec<Instant>,
    pub(super) pace: WorldPace,
    pub(super) stories: BTreeMap<SessionId, Story>,
    pub(super) closed: BTreeSet<(PlanEpoch, SessionId)>,
    /// How often sequences have followed to another pipeline.
    pub(super) moves: usize,
    pub(super) drafter: WorldDrafter,
}

impl World {
    pub(super) fn new(seed: u64, limits: Limits) -> Self {
        let (stages, now) = (1 + (seed % 4) as usize, Instant::now());
        let micros = |n: u64| Duration::from_micros(n);
        let pace = WorldPace {
            base: micros(seed % 7 * 500),
            row: micros(200),
            hop: micros(seed % 3 * 4000),
            uneven: 0.2,
            ..EVEN
        };
        Self {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            scheduler: Scheduler::new(limits),
            now,
            epoch: PlanEpoch(0),
            epochs: 0,
            stages,
            free: vec![now; stages],
            pace,
            open: BTreeMap::new(),
            next: None,
            unanswered: VecDeque::new(),
            masks: BTreeMap::new(),
            frames: VecDeque::new(),
            stories: BTreeMap::new(),
            closed: BTreeSet::new(),
            moves: 0,
            drafter: WorldDrafter::new(now, &limits),
        }
    }

    fn fresh_epoch(&mut self) -> PlanEpoch {
        self.epochs += 1;
        PlanEpoch(self.epochs)
    }

    pub(super) fn up(&mut self) {
        self.epoch = self.fresh_epoch();
        self.scheduler.pipeline_up(self.epoch, self.stages);
    }

    pub(super) fn down(&mut self) {
        let (epoch, next) = (self.epoch, self.next.as_ref().map(|(epoch, _)| *epoch));
        self.unanswered.retain(|(of, _)| Some(*of) == next);
        self.frames.retain(|(.., frame)| frame.epoch != epoch);
        self.open.clear();
        let actions = self.scheduler.pipeline_down(self.now, "lost w1");
        self.carry_out(actions);
    }

    /// A second pipeline, with as many stages.
    pub(super) fn next_up(&mut self) {
        let epoch = self.fresh_epoch();
        self.next = Some((epoch, BTreeMap::new()));
        self.scheduler.successor_up(self.now, epoch, self.stages);
    }

    /// Ids of a session that the stages of the next pipeline hold.
    pub(super) fn held_of_next(&self, session: SessionId) -> usize {
        self.next.as_ref().and_then(|(_, held)| held.get(&session)).map_or(0, Vec::len)
    }

    fn next_down(&mut self) {
        let Some((epoch, _)) = self.next.take() else { return };
        self.scheduler.successor_down(epoch);
        self.unanswered.retain(|(of, _)| *of != epoch);
        self.frames.retain(|(.., frame)| frame.epoch != epoch);
    }

    pub(super) fn submit(&mut self, request: GenerateRequest) -> SessionId {
        let (ids, max_tokens, grammar) = (request.ids.clone(), request.max_tokens, request.grammar.clone());
        let pooling = match request.prompt_rows {
            PromptRows::Pooled(pooling) => Some(pooling),
            PromptRows::Last | PromptRows::All => None,
        };
        let story = Story { ids, max_tokens, grammar, pooling, ..Story::default() };
        let session = self.scheduler.submit(self.now, request).unwrap();
        self.stories.insert(session, story);
        session
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % n
    }

    pub(super) fn random_move(&mut self) {
        match self.below(40) {
            0..=5 if self.scheduler.waiting() < 30 => {
                let mut prompt: Vec<u32> = (0..1 + self.below(60)).map(|_| self.below(50) as u32).collect();
                // Many begin alike.
                if self.below(2) == 0 {
                    prompt = (0..64 + self.below(20) as u32).map(|i| i * 7 % 50).chain(prompt).collect();
                }
                let (tokens, client) = (1 + self.below(90) as usize, ClientId(self.below(3)));
                // Some texts follow a grammar that may end them.
                let request = match prompt.len() % 4 {
                    0 => GenerateRequest {
                        grammar: Some(fifty::zigzag()),
                        ends: [fifty::END].into(),
                        ..request(prompt, tokens)
                    },
                    1 => {
                        let pooling = [Pooling::Mean, Pooling::First, Pooling::Last][tokens % 3];
                        GenerateRequest { prompt_rows: PromptRows::Pooled(pooling), ..request(prompt, tokens) }
                    }
                    _ => request(prompt, tokens),
                };
                self.submit(GenerateRequest { client, ..request });
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
            21 if self.scheduler.pipeline.is_some() && self.next.is_none() => self.next_up(),
            22 if self.below(4) == 0 => self.next_down(),
            _ => {}
        }
    }

    /// Lets the scheduler act, then answers one open session and computes one frame.
    pub(super) fn step(&mut self) {
        let actions = self.scheduler.pump(self.now);
        self.carry_out(actions);
        if let Some((epoch, session)) = self.unanswered.pop_front() {
            for _ in 0..self.stages {
                self.scheduler.opened(epoch, session);
            }
        }
        let frame = self.frames.front().map(|(back, ..)| *back);
        let answer = self.drafter.answers.front().map(|(at, _)| *at);
        if answer.is_some_and(|at| frame.is_none_or(|back| at <= back)) {
            let (at, answer) = self.drafter.answers.pop_front().unwrap();
            self.now = self.now.max(at);
            self.scheduler.draft_answered(self.now, answer);
            return;
        }
        if frame.is_none() && self.scheduler.draft_model.is_some() {
            // Somebody may wait for an answer that does not come.
            self.now += Duration::from_millis(10);
        }
        if let Some((back, times, frame)) = self.frames.pop_front() {
            self.now = self.now.max(back);
            let (sampled, answer) = self.compute(Frame { times, ..frame });
            assert_eq!(self.scheduler.check_answer(&sampled, &answer), Ok(()), "seed {}", self.seed);
            let actions = self.scheduler.stepped(self.now, &sampled, answer);
            self.carry_out(actions);
        }
    }

    pub(super) fn drain(&mut self) {
        for _ in 0..100_000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("seed {}: the scheduler never became idle", self.seed);
    }

    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open(open) => {
                    let (seed, held) = (self.seed, self.held(open.epoch));
                    let beginning = open.prefix.map_or(vec![], |prefix| {
                        assert!(prefix.positions.is_multiple_of(64) && prefix.positions < open.max_positions);
                        held[&prefix.session][..prefix.positions as usize].to_vec()
                    });
                    assert!(held.insert(open.session, beginning.clone()).is_none(), "seed {seed}: opened twice");
                    // Who has given its room up comes back under its number.
                    self.closed.remove(&(open.epoch, open.session));
                    let ids = self.scheduler.sequences[&open.session].ids.as_slice();
                    assert!(ids.starts_with(&beginning), "seed {seed}: another's");
                    self.unanswered.push_back((open.epoch, open.session));
                }
                Action::Close(epoch, session) => {
                    let seed = self.seed;
                    assert!(self.held(epoch).remove(&session).is_some(), "seed {seed}: {session} was not open");
                    self.unanswered.retain(|&waiting| waiting != (epoch, session));
                    assert!(self.closed.insert((epoch, session)), "seed {seed}: {session} closed twice");
                }
                Action::Keep(epoch, session, positions) => {
                    let seed = self.seed;
                    let held = self.held(epoch).get_mut(&session).expect("a session that is open");
                    assert!(positions > 0 && positions <= held.len(), "seed {seed}: kept what was not there");
                    held.truncate(positions);
                    self.unanswered.retain(|&waiting| waiting != (epoch, session));
                }
                Action::Followed(epoch) => {
                    let next = self.next.take().filter(|(next, _)| *next == epoch);
                    self.open = next.expect("the pipeline that was followed to").1;
                    self.unanswered.retain(|(of, _)| *of == epoch);
                    self.frames.retain(|(.., frame)| frame.epoch == epoch);
                    self.epoch = epoch;
                    self.moves += 1;
                }
                Action::Mask(Mask { epoch, step, session, position, tokens }) => {
                    let twice = self.masks.insert((epoch, step, session, position), tokens);
                    assert!(twice.is_none(), "seed {}: a mask twice", self.seed);
                }
                Action::Frame(frame) => self.send(frame),
                Action::Draft(order) => self.draft(order),
                Action::Deliver(session, event) => {
                    let story = self.stories.get_mut(&session).unwrap();
                    assert!(!story.over() || story.cancelled, "seed {}: an event after the last", self.seed);
                    match event {
                        GenerateEvent::Prompt(rows) => story.prompt = rows,
                        GenerateEvent::Pooled(vector) => story.pooled = Some(vector),
                        GenerateEvent::Progress { cached_tokens, computed_tokens } => {
                            let unfinished = cached_tokens..story.ids.len();
                            let sound = unfinished.contains(&computed_tokens) && story.tokens.is_empty();
                            assert!(sound, "seed {}: {computed_tokens} of {unfinished:?}", self.seed);
                            story.progress.push(computed_tokens);
                        }
                        GenerateEvent::Prefilled { cached_tokens } => story.cached = cached_tokens,
                        GenerateEvent::Token(row) => story.tokens.push(row.token),
                        GenerateEvent::Finished(finish) => story.finish = Some(finish),
                        GenerateEvent::Failed(error) => story.failed = Some(error),
                    }
                }
            }
        }
    }

    /// Ids that the stages of an epoch hold.
    fn held(&mut self, epoch: PlanEpoch) -> &mut BTreeMap<SessionId, Vec<u32>> {
        match &mut self.next {
            Some((next, held)) if *next == epoch => held,
            Some(_) | None => {
                assert_eq!(epoch, self.epoch, "seed {}: a pipeline that is gone", self.seed);
                &mut self.open
            }
        }
    }

    /// A frame on its way through the stages, each of which takes one after the other.
    fn send(&mut self, frame: Frame) {
        let WorldPace { base, row, hop, uneven, tile, disturbed } = self.pace;
        let even = base + row * u32::try_from(frame.ids.len().next_multiple_of(tile)).unwrap();
        let (mut at, mut times) = (self.now + hop, StepTimes::default());
        for stage in 0..self.stages {
            let lengthened = if (self.below(1000) as f64) < 1000.0 * disturbed { 2.0 } else { 1.0 };
            let compute = even.mul_f64(lengthened * (1.0 + uneven * (self.below(2001) as f64 / 1000.0 - 1.0)));
            let start = at.max(self.free[stage]);
            times = times.and_stage(compute, start - at);
            self.free[stage] = start + compute;
            at = self.free[stage] + hop;
        }
        self.frames.push_back((at, times, frame));
    }

    /// What the stages do with a frame: extend the sessions' ids, and sample or add up where it is wanted.
    fn compute(&mut self, frame: Frame) -> (Frame, Answer) {
        let mut rest = frame.ids.as_slice();
        let (mut segments, mut rows, mut sums) = (vec![], vec![], vec![]);
        let (waiting, mut masks) = (MaskedRows::places(&frame), std::mem::take(&mut self.masks));
        assert!(waiting.len() <= 256, "more masks than a worker takes");
        for segment in &frame.segments {
            let (ids, after) = rest.split_at(segment.rows as usize);
            rest = after;
            let Some(held) = self.held(frame.epoch).get_mut(&segment.session) else {
                // A stage that has failed a session takes its rows out of the step.
                assert!(self.stories[&segment.session].over(), "rows of a session that is not open");
                segments.push(Segment { rows: 0, wants: Wants::None, ..*segment });
                continue;
            };
            assert!(segment.position as usize <= held.len(), "a gap");
            held.truncate(segment.position as usize);
            held.extend(ids);
            let first = match segment.wants {
                Wants::None | Wants::Sum | Wants::SumLast => segment.rows,
                Wants::Last => segment.rows - 1,
                Wants::All => 0,
            };
            let held = &*held;
            match segment.wants {
                Wants::Sum => sums.push(sum(held, segment.position as usize)),
                Wants::SumLast => sums.push(sum(held, held.len() - 1)),
                Wants::None | Wants::Last | Wants::All => {}
            }
            for row in first..segment.rows {
                let end = (segment.position + row + 1) as usize;
                let target = ids.get(row as usize + 1).map_or(f32::NAN, |&id| id as f32);
                let (token, place) = (next_token(&held[..end]), (segment.session, segment.position + row));
                let mask = waiting.contains(&place).then(|| {
                    masks.remove(&(frame.epoch, frame.step, place.0, place.1)).expect("its mask came before it")
                });
                rows.push(sampled(mask.map_or(token, |mask| nearest(&mask, token)), target));
            }
            let (position, rows) = (segment.position + first, segment.rows - first);
            let trail = Trails::default().write(0, held).unwrap();
            segments.push(Segment { position, rows, trail, ..*segment });
        }
        self.masks = masks;
        (Frame { kind: FrameKind::Sampled, segments, ..frame }, Answer { rows, sums })
    }

    pub(super) fn check_books(&self) {
        let seed = self.seed;
        assert!(
            self.scheduler.positions_reserved() <= self.scheduler.limits.kv_positions,
            "seed {seed}: more promised than there is"
        );
        let WorldPace { base, row, hop, .. } = self.pace;
        let step = (base + row).as_secs_f64();
        let fill = self.stages as f64 + (self.stages + 1) as f64 * hop.as_secs_f64() / step;
        // Until a number of rows was measured, its time is a guess.
        let most = 5.0 * fill + self.scheduler.running() as f64 + 2.0;
        let frames = self.frames.iter().filter(|(.., frame)| frame.epoch == self.epoch).count();
        assert!(frames as f64 <= most, "seed {seed}: {frames} steps in flight");
        for (session, ids) in &self.open {
            assert!(ids.len() <= self.scheduler.pages.held(*session), "seed {seed}: {session} has more than its room");
        }
        let open = self.scheduler.running() + self.scheduler.kept.len();
        assert_eq!(self.open.len(), open, "seed {seed}: sessions that nobody knows of");
        assert!(self.frames.iter().all(|(.., f)| f.ids.len() <= limits().chunk_rows), "seed {seed}: a step too large");
    }

    pub(super) fn check_stories(&self) {
        for (session, story) in &self.stories {
            let room = self.scheduler.limits.context - story.ids.len();
            let room = if story.pooling.is_some() { 0 } else { room };
            let expected = continuation_along(&story.ids, story.max_tokens.min(room), story.grammar.as_deref());
            // So many losses in so few steps may well cost a sequence its last restart.
            let given_up = matches!(story.failed, Some(GenerateError::WorkerLost { .. }));
            if story.cancelled || given_up {
                assert!(expected.starts_with(&story.tokens), "seed {}: {session} said something else", self.seed);
            } else {
                assert_eq!(story.tokens, expected, "seed {}: {session}", self.seed);
                assert!(story.finish.is_some(), "seed {}: {session} never finished", self.seed);
                let expected = story.pooling.map(|pooling| vector(&story.ids, pooling));
                assert_eq!(story.pooled, expected, "seed {}: {session}", self.seed);
            }
        }
        let kept = self.scheduler.kept.keys().copied().collect::<BTreeSet<_>>();
        assert_eq!(self.open.keys().copied().collect::<BTreeSet<_>>(), kept, "seed {}: sessions left open", self.seed);
        assert!(self.scheduler.served.is_empty(), "seed {}: clients left in the books", self.seed);
    }
}

impl Story {
    pub(super) fn over(&self) -> bool {
        self.finish.is_some() || self.failed.is_some() || self.cancelled
    }
}

fn sampled(token: u32, target_logprob: f32) -> Sampled {
    Sampled { token, logprob: 0.0, target_logprob, digest: 0, top: vec![] }
}

/// The sum of the rows of these ids from one on: what follows each in this model, and its position.
fn sum(ids: &[u32], first: usize) -> RowSum {
    let (last, mut sum) = (ids.len(), [0, 0]);
    for position in first..last {
        sum[0] += i64::from(next_token(&ids[..=position])) << 32;
        sum[1] += i64::try_from(position).unwrap() << 20;
    }
    RowSum(sum.to_vec())
}

/// What a prompt becomes when it is computed at once.
fn vector(ids: &[u32], pooling: Pooling) -> Vec<f32> {
    let mut pool = Pool::new(pooling);
    pool.add(&match pooling {
        Pooling::Mean => sum(ids, 0),
        Pooling::First => sum(&ids[..1], 0),
        Pooling::Last => sum(ids, ids.len() - 1),
    });
    pool.vector()
}
