//! The scheduler against a pipeline made of a queue: random arrivals, cancels and losses, by seed.

mod drafted;
mod held;
mod pooled;
mod timing;
mod world;

use std::sync::Arc;

use qmesh_net::{Sampling, TokenMask};

use self::world::World;
use super::*;
use crate::{
    generate::{FinishReason, PromptRows},
    grammar::{CompiledGrammar, fifty},
};

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
        let session = world.submit(GenerateRequest { prompt_rows: PromptRows::All, ..request(vec![7], 3) });
        world.drain();
        assert_eq!((world.stories[&session].prompt.len(), world.stories[&session].tokens.len()), (1, 3));
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
    assert_eq!(too_long, GenerateError::ContextExceeded { prompt_tokens: 200, context: 192 });
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
fn sequences_follow_to_the_next_pipeline_between_two_tokens() {
    let mut world = World::new(2, Limits { chunk_rows: 64, ..limits() });
    world.up();
    let beginning: Vec<u32> = (0..100).map(|i| i * 11 % 50).collect();
    let sessions: Vec<_> = (0..4).map(|i| world.submit(request([&beginning[..], &[i]].concat(), 80))).collect();
    while sessions.iter().any(|s| world.stories[s].tokens.len() < 5) {
        world.step();
    }
    let waiting = world.submit(request(vec![9; 120], 20));
    world.next_up();
    let steps = world.scheduler.totals.generated_tokens;
    while world.moves == 0 {
        world.step();
        assert!(world.scheduler.is_idle() || world.scheduler.pipeline.is_some());
    }
    // Tokens came all the while, and what had been computed of them there is not computed again.
    assert!(world.scheduler.totals.generated_tokens > steps);
    assert!(sessions.iter().all(|s| world.scheduler.sequences[s].phase == Phase::Running));
    assert!(sessions.iter().all(|s| world.scheduler.sequences[s].unsent() <= 48));
    world.drain();
    world.check_stories();
    assert!(world.stories[&waiting].finish.is_some());
}

#[test]
fn states_bound_the_sessions_on_the_stages_and_nobody_waits_for_ever() {
    for seed in 0..30 {
        let mut world = World::new(seed, Limits { sessions: 2, prefix_reuse: PrefixReuse::Off, ..limits() });
        world.up();
        let sessions: Vec<_> = (0..9).map(|i| world.submit(request(vec![i; 20], 15))).collect();
        world.step();
        assert_eq!((world.scheduler.running(), world.scheduler.waiting()), (2, 7), "there is room for two");
        while world.stories[&sessions[1]].finish.is_none() {
            world.step();
            assert!(world.scheduler.running() <= 2);
        }
        world.next_up();
        world.drain();
        world.check_stories();
        assert!(sessions.iter().all(|session| world.stories[session].finish.is_some()), "seed {seed}");
    }
}

#[test]
fn who_begins_during_a_change_follows_too_where_the_last_one_made_room() {
    for seed in 0..100 {
        // Room for one of them at a time, on either pipeline.
        let mut world = World::new(seed, Limits { kv_positions: 192, chunk_rows: 16, ..limits() });
        world.up();
        let beginning: Vec<u32> = (0..100).map(|i| i * 11 % 50).collect();
        let first = world.submit(request(beginning.clone(), 20));
        while world.stories[&first].tokens.len() < 5 {
            world.step();
        }
        let second = world.submit(request([&beginning[..], &[7]].concat(), 80));
        world.next_up();
        while world.moves == 0 {
            world.step();
        }
        let begun = !world.stories[&second].tokens.is_empty();
        let sequence = world.scheduler.sequences.get(&second).filter(|_| begun);
        assert!(sequence.is_none_or(|s| s.phase == Phase::Running && s.unsent() <= 48), "seed {seed}: it starts over");
        world.drain();
        world.check_stories();
    }
}

#[test]
fn who_has_followed_some_of_the_way_goes_on_from_there_when_the_old_pipeline_is_lost() {
    let mut world = World::new(2, limits());
    world.up();
    let session = world.submit(request(vec![5; 120], 60));
    while world.stories[&session].tokens.len() < 5 {
        world.step();
    }
    world.next_up();
    while world.held_of_next(session) < 32 {
        world.step();
    }
    world.down();
    assert_eq!(world.moves, 1);
    assert!(world.scheduler.sequences[&session].unsent() < 120, "not from the start");
    world.drain();
    world.check_stories();
}

#[test]
fn what_owes_an_answer_for_too_long_is_found() {
    let mut world = World::new(1, limits());
    world.up();
    world.submit(request(vec![5; 30], 40));
    for _ in 0..20 {
        world.step();
    }
    let actions = world.scheduler.pump(world.now);
    world.carry_out(actions);
    assert_eq!(world.scheduler.overdue(world.now), None);
    let late = world.now + world.scheduler.patience() * 2;
    assert_eq!(world.scheduler.overdue(late).map(|(epoch, _)| epoch), Some(world.epoch));
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
fn what_a_sequence_leaves_is_begun_with_and_goes_when_room_is_needed() {
    let mut world = World::new(2, limits());
    world.up();
    let prompt: Vec<u32> = (0..100).map(|i| i * 11 % 50).collect();
    let first = world.submit(request(prompt.clone(), 40));
    world.drain();
    assert_eq!((world.stories[&first].cached, world.scheduler.positions_reserved()), (0, 128));
    // The same conversation goes on: prompt and answer are there, in whole pages.
    let turn = [&prompt[..], &world.stories[&first].tokens, &[7, 8, 9]].concat();
    let second = world.submit(request(turn.clone(), 20));
    let other = world.submit(request(prompt[..70].to_vec(), 20));
    world.drain();
    assert_eq!((world.stories[&second].cached, world.stories[&other].cached), (128, 64));
    assert_eq!(world.stories[&second].tokens, continuation(&turn, 20));
    assert_eq!(world.scheduler.totals.cached_tokens, 192);
    // Each of these needs three pages of twelve: what is kept makes room.
    for i in 0..8 {
        world.submit(request(vec![i; 150], 42));
    }
    world.drain();
    world.check_stories();
    assert!(world.scheduler.positions_reserved() <= limits().kv_positions);
    let scored = world.submit(GenerateRequest { prompt_rows: PromptRows::All, ..request(turn, 0) });
    world.drain();
    assert_eq!((world.stories[&scored].cached, world.stories[&scored].prompt.len()), (0, 143));
}

#[test]
fn sequences_grow_into_the_room_that_there_is_and_the_youngest_gives_way() {
    for reuse in [PrefixReuse::Off, PrefixReuse::On] {
        let mut world = World::new(6, Limits { context: 640, kv_positions: 1280, prefix_reuse: reuse, ..limits() });
        world.up();
        // Each may come to need five pages of twenty, and begins with two.
        let sessions: Vec<_> = (0..8).map(|i| world.submit(request(vec![i; 10], 300))).collect();
        let mut most = 0;
        while !world.scheduler.is_idle() {
            world.step();
            world.check_books();
            most = most.max(world.scheduler.running());
        }
        world.check_stories();
        assert!(most > 4, "{most} at a time: no more than fit whole");
        assert!(world.scheduler.totals.preemptions > 0);
        let finished = |session: &SessionId| world.stories[session].finish.as_ref().unwrap().reason;
        assert!(sessions.iter().all(|session| finished(session) == FinishReason::Length));
    }
}

#[test]
fn who_gives_way_while_sequences_follow_loses_nothing() {
    let mut world = World::new(6, Limits { context: 640, kv_positions: 1280, ..limits() });
    world.up();
    let sessions: Vec<_> = (0..8).map(|i| world.submit(request(vec![i; 10], 300))).collect();
    while world.stories[&sessions[0]].tokens.len() < 150 {
        world.step();
    }
    world.next_up();
    while !world.scheduler.is_idle() {
        world.step();
    }
    assert_eq!(world.moves, 1);
    assert!(world.scheduler.totals.preemptions > 0);
    world.check_stories();
}

#[test]
fn drafts_that_are_right_save_steps_and_wrong_ones_cost_no_text() {
    let steps = |speculation| {
        let mut world = World::new(7, Limits { speculation, prefix_reuse: PrefixReuse::Off, ..limits() });
        world.up();
        let session = world.submit(request((0..60).map(|i| i % 5).collect(), 100));
        world.drain();
        assert_eq!(world.stories[&session].tokens, continuation(&(0..60).map(|i| i % 5).collect::<Vec<_>>(), 100));
        let totals = world.scheduler.totals;
        assert!(totals.accepted_tokens <= totals.drafted_tokens && totals.generated_tokens == 100);
        world.scheduler.step_totals.steps
    };
    let (on, off) = (steps(Speculation::On), steps(Speculation::Off));
    assert!(on * 10 < off * 9, "{on} steps with drafts, {off} without");
}

#[test]
fn random_worlds_keep_their_books_and_their_texts() {
    let mut moves = 0;
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
        moves += world.moves;
    }
    assert!(moves > 400, "{moves} moves to another pipeline");
}

/// Asks for a text along a grammar, which may end it.
fn bound(ids: Vec<u32>, max_tokens: usize, regex: &str) -> GenerateRequest {
    GenerateRequest { grammar: Some(fifty::grammar(regex)), ends: Arc::new([fifty::END]), ..request(ids, max_tokens) }
}

#[test]
fn drafts_and_lost_pipelines_change_no_text_along_a_grammar() {
    let (ids, regex) = ((0..60).map(|i| i % 5).collect::<Vec<u32>>(), "([0-4]{7}[5-8]){20}");
    let mut drafted = 0;
    for (seed, speculation) in [(1, Speculation::On), (2, Speculation::On), (3, Speculation::Off), (6, Speculation::On)]
    {
        let mut world = World::new(seed, Limits { speculation, ..limits() });
        world.up();
        let session = world.submit(bound(ids.clone(), 100, regex));
        let free = world.submit(request(ids.clone(), 60));
        while world.stories[&session].tokens.len() < 20 {
            world.step();
        }
        world.down();
        world.up();
        while world.stories[&session].tokens.len() < 50 {
            world.step();
        }
        world.next_up();
        world.drain();
        world.check_stories();
        let story = &world.stories[&session];
        let text = fifty::text(&story.tokens);
        assert!(text.len() == 100 && text.chars().skip(7).step_by(8).all(|c| ('5'..='8').contains(&c)), "{text}");
        assert_eq!(world.stories[&free].tokens, continuation(&ids, 60), "who has no grammar is not bound by it");
        drafted += world.scheduler.totals.accepted_tokens;
        assert!(world.scheduler.lost.is_empty());
    }
    assert!(drafted > 100, "{drafted} drafted tokens were right");
}

#[test]
fn a_grammar_ends_its_text_and_no_later_than_it_must() {
    let mut world = World::new(1, limits());
    world.up();
    let whole = world.submit(bound(vec![7; 70], 100, "[0-4]{3}5"));
    let cut = world.submit(bound(vec![7], 2, "[0-4]{3}5"));
    let scored = GenerateRequest { prompt_rows: PromptRows::All, ..bound(vec![7; 40], 9, "4") };
    let scored = world.submit(scored);
    let nothing = world.submit(GenerateRequest { prompt_rows: PromptRows::All, ..bound(vec![7; 40], 0, "5") });
    world.drain();
    let story = |session| &world.stories[session];
    let reason = |session| story(session).finish.as_ref().unwrap().reason;
    assert_eq!((story(&whole).tokens[3..].to_vec(), reason(&whole)), (vec![5, fifty::END], FinishReason::End));
    assert_eq!((story(&cut).tokens.len(), reason(&cut)), (2, FinishReason::Length));
    assert_eq!((story(&scored).tokens.clone(), story(&scored).prompt.len()), (vec![4, fifty::END], 40));
    assert_eq!((story(&nothing).tokens.len(), story(&nothing).prompt.len()), (0, 40));
    assert!(world.masks.is_empty(), "masks without rows");
}

#[test]
fn a_token_that_the_grammar_refuses_ends_the_text_with_an_error() {
    let mut world = World::new(1, limits());
    world.up();
    let session = world.submit(bound(vec![7; 3], 9, "[0-4]{3}5"));
    world.step();
    let actions = world.scheduler.pump(world.now);
    world.carry_out(actions);
    assert_eq!((world.frames.len(), world.masks.len()), (1, 1));
    // A last stage that does not heed its masks.
    world.masks.values_mut().for_each(|mask| *mask = TokenMask::Ids(vec![9]));
    world.drain();
    let story = &world.stories[&session];
    assert!(story.tokens.is_empty() && matches!(story.failed, Some(GenerateError::Grammar(_))), "{:?}", story.failed);
    assert!(world.scheduler.is_idle());
}

#[test]
fn a_text_that_cannot_go_on_fails_alone() {
    let mut world = World::new(1, limits());
    world.up();
    // No token of this vocabulary spells the second character.
    let stuck = world.submit(bound(vec![7; 3], 9, "5é"));
    let free = world.submit(request(vec![7; 3], 20));
    let bound = world.submit(bound(vec![7; 3], 9, "[0-9]{9}"));
    world.drain();
    let story = &world.stories[&stuck];
    assert_eq!(story.tokens, [5]);
    assert!(matches!(story.failed, Some(GenerateError::Grammar(_))), "{:?}", story.failed);
    assert_eq!((world.stories[&free].tokens.len(), world.stories[&bound].tokens.len()), (20, 9));
    assert!(world.scheduler.is_idle() && world.scheduler.lost.is_empty());
}

#[test]
fn many_texts_along_grammars_wait_for_each_other_s_masks() {
    let mut world = World::new(3, Limits { chunk_rows: 2048, kv_positions: 1 << 16, waiting: 1000, ..limits() });
    world.up();
    for i in 0..400 {
        world.submit(bound(vec![i % 50; 3], 12, "[0-9]+"));
    }
    world.drain();
    world.check_stories();
}

fn limits() -> Limits {
    Limits {
        context: 192,
        kv_positions: 768,
        sessions: usize::MAX,
        chunk_rows: 16,
        vocab: 50,
        hidden: 2,
        waiting: 40,
        resume: Duration::from_secs(60),
        prefix_reuse: PrefixReuse::On,
        speculation: Speculation::On,
        draft_model: None,
    }
}

fn request(ids: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        ids,
        max_tokens,
        sampling: Sampling::default(),
        ends: Arc::new([]),
        grammar: None,
        prompt_rows: PromptRows::Last,
        client: ClientId(1),
        key: None,
    }
}

/// The model of these tests: the next token depends on all ids before it, and yet often follows a pattern.
fn next_token(ids: &[u32]) -> u32 {
    let hash = ids.iter().fold(17_u32, |hash, &id| hash.wrapping_mul(31).wrapping_add(id));
    if hash % 8 < 6 { ids.len() as u32 % 5 } else { hash % 50 }
}

fn continuation(prompt: &[u32], tokens: usize) -> Vec<u32> {
    continuation_along(prompt, tokens, None)
}

/// The same where a grammar says what may follow.
fn continuation_along(prompt: &[u32], tokens: usize, grammar: Option<&CompiledGrammar>) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    let mut walk = grammar.map(CompiledGrammar::start);
    for _ in 0..tokens {
        let token = next_token(&ids);
        let Some(walk) = &mut walk else {
            ids.push(token);
            continue;
        };
        let token = nearest(&walk.mask().unwrap(), token);
        walk.advance(token).unwrap();
        ids.push(token);
        if token == fifty::END {
            break;
        }
    }
    ids.split_off(prompt.len())
}

/// What the model of these tests says in place of a token that may not follow.
fn nearest(mask: &TokenMask, token: u32) -> u32 {
    (token..50).chain(0..token).find(|token| mask.allows(*token)).expect("something may follow")
}
