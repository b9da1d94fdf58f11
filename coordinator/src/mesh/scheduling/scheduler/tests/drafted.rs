//! A small model drafts: the texts are the same, and they come sooner where that pays.

use qmesh_net::{DraftAnswer, DraftOrder};

use super::{
    world::{EVEN, WorldPace},
    *,
};
use crate::mesh::scheduling::draft_model::DraftModelState;

/// A model that drafts, if the limits have one: how it is, and what it was told.
pub(super) struct WorldDrafter {
    /// Of each token.
    takes: Duration,
    /// Percent of its tokens that are right.
    right: u64,
    /// It has stopped, and answers nothing.
    is_stuck: bool,
    told: BTreeMap<SessionId, Vec<u32>>,
    /// In order, with when they come.
    pub(super) answers: VecDeque<(Instant, DraftAnswer)>,
    /// Tokens that it was asked for.
    asked: usize,
}

impl WorldDrafter {
    /// One that is ready, where the limits have one.
    pub(super) fn new(now: Instant, limits: &Limits) -> Self {
        let ready = limits.draft_model.iter().map(|_| (now, DraftAnswer::Ready));
        Self {
            takes: Duration::from_micros(300),
            right: 80,
            is_stuck: false,
            told: BTreeMap::new(),
            answers: ready.collect(),
            asked: 0,
        }
    }
}

impl World {
    /// The scheduler orders drafts.
    pub(super) fn draft(&mut self, order: DraftOrder) {
        let seed = self.seed;
        match order {
            DraftOrder::Open { session, .. } => {
                assert!(self.drafter.told.insert(session, vec![]).is_none(), "seed {seed}: {session} opened twice");
            }
            DraftOrder::Close { session } => {
                assert!(self.drafter.told.remove(&session).is_some(), "seed {seed}: {session} is not open");
            }
            DraftOrder::Draft { session, from, ids, most } => {
                let told = self.drafter.told.get_mut(&session).expect("a session that is open");
                assert_eq!(told.len(), from as usize, "seed {seed}: a gap");
                told.extend(ids);
                let told = told.clone();
                assert_eq!(told, self.scheduler.sequences[&session].ids, "seed {seed}");
                self.drafter.asked += most as usize;
                if self.drafter.is_stuck {
                    return;
                }
                let right = self.drafter.right;
                let drafted = continuation(&told, most as usize).into_iter();
                let ids = drafted.map(|id| if self.below(100) < right { id } else { (id + 1) % 50 }).collect();
                let token_us = self.drafter.takes.as_micros() as u32;
                let last = self.drafter.answers.back().map_or(self.now, |(at, _)| *at);
                let at = self.now.max(last) + self.drafter.takes * most;
                let answer = DraftAnswer::Drafted { session, at: told.len() as u32, ids, token_us };
                self.drafter.answers.push_back((at, answer));
            }
        }
    }
}

/// Limits with a model that drafts.
fn drafting() -> Limits {
    let draft_model = Some(DraftLimits { context: 8192, vocab: 50, most: 15 });
    Limits { context: 8192, kv_positions: 1 << 20, chunk_rows: 256, draft_model, ..limits() }
}

/// Stages that are far from each other.
fn far() -> WorldPace {
    WorldPace { base: millis(20), row: millis(1), hop: millis(50), ..EVEN }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How long so many streams of 200 tokens take, and the world after them.
fn took(limits: Limits, pace: WorldPace, streams: u32, change: impl FnOnce(&mut World)) -> (f64, World) {
    let mut world = World::new(1, limits);
    world.pace = pace;
    change(&mut world);
    world.up();
    let since = world.now;
    for stream in 0..streams {
        let prompt = (0..40).map(|i| (i * i * 7 + i * 3 + stream * 11) % 50).collect();
        world.submit(GenerateRequest { client: ClientId(stream.into()), ..request(prompt, 200) });
    }
    world.drain();
    world.check_stories();
    ((world.now - since).as_secs_f64(), world)
}

#[test]
fn over_slow_links_drafts_of_a_model_save_time() {
    for streams in [1, 4] {
        let (without, _) = took(Limits { draft_model: None, ..drafting() }, far(), streams, |_| ());
        let (with, world) = took(drafting(), far(), streams, |world| world.drafter.takes = millis(5));
        assert!(with * 1.4 < without, "{streams}: {with:.2} s with a model, {without:.2} s without");
        let model = world.scheduler.draft_model().unwrap();
        assert!(model.drafted > 100 && model.accepted * 3 > model.drafted, "{model:?}");
        assert!(world.scheduler.totals.drafted_tokens >= model.drafted);
    }
}

#[test]
fn nobody_waits_for_drafts_that_do_not_pay() {
    // Too slow, mostly wrong, or stages so busy that rows cost what steps do.
    let slow: fn(&mut World) = |world| world.drafter.takes = millis(400);
    let wrong: fn(&mut World) = |world| (world.drafter.takes, world.drafter.right) = (millis(5), 3);
    let busy = WorldPace { base: millis(1), row: millis(20), hop: millis(1), ..EVEN };
    for (pace, streams, change) in [(far(), 1, slow), (far(), 3, wrong), (busy, 8, |_: &mut World| ())] {
        let (without, _) = took(Limits { draft_model: None, ..drafting() }, pace, streams, |_| ());
        let (with, world) = took(drafting(), pace, streams, change);
        assert!(with < 1.06 * without, "{streams}: {with:.2} s with a model, {without:.2} s without");
        assert!(world.drafter.asked > 0, "it is tried all the same");
    }
}

#[test]
fn drafting_begins_again_when_it_has_come_to_pay() {
    let mut world = World::new(1, drafting());
    (world.pace, world.drafter.takes) = (far(), millis(500));
    world.up();
    world.submit(request((0..40).map(|i| i * i % 50).collect(), 1500));
    let accepted = |world: &World| world.scheduler.draft_model().unwrap().accepted;
    while world.scheduler.totals.generated_tokens < 300 {
        world.step();
    }
    let before = accepted(&world);
    world.drafter.takes = millis(3);
    world.drain();
    world.check_stories();
    assert!(accepted(&world) > before + 200, "{} and then {}", before, accepted(&world));
}

#[test]
fn a_model_that_says_nothing_any_more_holds_nobody_up_for_long() {
    let mut world = World::new(1, drafting());
    (world.pace, world.drafter.takes) = (far(), millis(3));
    world.up();
    let session = world.submit(request((0..40).map(|i| i * i % 50).collect(), 300));
    while world.scheduler.draft_model().unwrap().accepted < 20 {
        world.step();
    }
    world.drafter.is_stuck = true;
    world.drain();
    world.check_stories();
    assert!(world.stories[&session].finish.is_some());
    let mut world = World::new(1, drafting());
    world.up();
    let session = world.submit(request(vec![1; 40], 300));
    while world.stories[&session].tokens.len() < 100 {
        world.step();
    }
    world.scheduler.draft_model_gone();
    world.drafter.told.clear();
    world.drafter.answers.clear();
    world.drain();
    world.check_stories();
    assert_eq!(world.scheduler.draft_model().unwrap().state, DraftModelState::Gone);
}

#[test]
fn a_text_along_a_grammar_is_the_same_with_a_model() {
    let mut drafted = 0;
    for seed in 0..12 {
        let mut world = World::new(seed, Limits { chunk_rows: 16, ..drafting() });
        world.up();
        let ids: Vec<u32> = (0..60).map(|i| i * i % 50).collect();
        let session = world.submit(bound(ids.clone(), 100, "([0-4]{7}[5-8]){20}"));
        let free = world.submit(request(ids.clone(), 60));
        world.drain();
        world.check_stories();
        let text = fifty::text(&world.stories[&session].tokens);
        assert!(text.len() == 100 && text.chars().skip(7).step_by(8).all(|c| ('5'..='8').contains(&c)), "{text}");
        assert_eq!(world.stories[&free].tokens, continuation(&ids, 60));
        drafted += world.scheduler.draft_model().unwrap().accepted;
    }
    assert!(drafted > 100, "{drafted} drafts of the model were right");
}

#[test]
fn random_worlds_with_a_model_keep_their_books_and_their_texts() {
    let (mut moves, mut accepted) = (0, 0);
    for seed in 0..200 {
        // It has fewer positions and fewer ids than they may come to need.
        let draft_model = Some(DraftLimits { context: 150, vocab: 48, most: 1 + seed as usize % 15 });
        let mut world = World::new(seed, Limits { draft_model, ..limits() });
        world.drafter.takes = Duration::from_micros(seed % 5 * 700);
        world.up();
        for turn in 0..300 {
            world.drafter.is_stuck = seed % 7 == 0 && turn % 50 > 40;
            world.random_move();
            world.step();
            world.check_books();
        }
        if world.scheduler.pipeline.is_none() {
            world.up();
        }
        world.drain();
        world.check_stories();
        let actions = world.scheduler.pump(world.now);
        world.carry_out(actions);
        assert!(world.drafter.told.is_empty(), "seed {seed}: {:?} were not closed", world.drafter.told.keys());
        moves += world.moves;
        accepted += world.scheduler.draft_model().unwrap().accepted;
    }
    assert!(moves > 100 && accepted > 500, "{moves} moves to another pipeline, {accepted} drafts were right");
}
