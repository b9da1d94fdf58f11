//! What the scheduler makes of stages and links, against what they could give at best.

use super::{
    world::{EVEN, WorldPace},
    *,
};

fn large() -> Limits {
    Limits {
        context: 8192,
        kv_positions: 1 << 20,
        chunk_rows: 256,
        waiting: 100,
        speculation: Speculation::Off,
        ..limits()
    }
}

fn pipeline(stages: u64, pace: WorldPace) -> World {
    let mut world = World::new(stages - 1, large());
    world.pace = pace;
    world.up();
    world
}

fn millis(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

/// Tokens a second of `clients` sequences that decode, once all of them do.
fn rate(world: &mut World, clients: u64) -> f64 {
    for client in 0..clients {
        world.submit(GenerateRequest { client: ClientId(client), ..request(vec![client as u32 % 50; 3], 400) });
    }
    let tokens = |world: &World| world.scheduler.totals.generated_tokens as f64;
    while tokens(world) < 40.0 * clients as f64 {
        world.step();
    }
    let (from, since) = (tokens(world), world.now);
    while tokens(world) < 240.0 * clients as f64 {
        world.step();
    }
    (tokens(world) - from) / (world.now - since).as_secs_f64()
}

/// The best that any number of groups could give: B / t(B) or N / (T + H), whichever is less.
fn ideal(stages: u64, pace: WorldPace, clients: u64) -> f64 {
    let of_groups = |groups: u64| {
        let rows = clients as f64 / groups as f64;
        let step = pace.base.as_secs_f64() + pace.row.as_secs_f64() * rows;
        let hops = pace.hop.as_secs_f64() * (stages + 1) as f64;
        (rows / step).min(clients as f64 / (stages as f64 * step + hops))
    };
    (1..=clients).map(of_groups).fold(0.0, f64::max)
}

#[test]
fn streams_reach_what_the_stages_can_give() {
    for (stages, base, row, hop, uneven, least) in [
        (1, 50.0, 6.0, 0.2, 0.0, 0.97),
        (2, 25.0, 3.0, 0.2, 0.0, 0.95),
        (4, 8.0, 2.0, 0.2, 0.0, 0.95),
        (4, 8.0, 2.0, 20.0, 0.0, 0.93),
        (4, 9.6, 1.1, 50.0, 0.0, 0.93),
        (2, 25.0, 3.0, 0.2, 0.1, 0.90),
        (4, 8.0, 2.0, 20.0, 0.1, 0.90),
        (3, 1.0, 9.0, 10.0, 0.1, 0.90),
    ] {
        let pace = WorldPace { base: millis(base), row: millis(row), hop: millis(hop), uneven, ..EVEN };
        for clients in [1, 2, 8, 32, 64] {
            let share = rate(&mut pipeline(stages, pace), clients) / ideal(stages, pace, clients);
            assert!(share > least, "{clients} on {stages} stages of {base} + {row}·m ms, links {hop}: {share:.3}");
        }
    }
}

#[test]
fn a_prompt_alone_flows_through_all_stages_at_once() {
    let pace = WorldPace { base: millis(30.0), row: millis(2.0), hop: millis(0.2), ..EVEN };
    let took = |stages: u64| {
        // The same model on more stages: each has its part of it.
        let part = stages as u32;
        let mut world = pipeline(stages, WorldPace { base: pace.base / part, row: pace.row / part, ..pace });
        let since = world.now;
        world.submit(request((0..2048).map(|i| i % 50).collect(), 1));
        world.drain();
        (world.now - since).as_secs_f64()
    };
    assert!(took(1) / took(2) > 1.75, "{:.2}", took(1) / took(2));
    assert!(took(1) / took(4) > 3.0, "{:.2}", took(1) / took(4));
}

/// Gaps between the tokens of `streams` streams, sorted: before a prompt of 4096 tokens comes, and until its first
/// token; and how many times as long that took as it does alone.
fn beside_a_long_prompt(stages: u64, streams: u64, pace: WorldPace) -> ([Vec<f64>; 2], f64) {
    let long = || GenerateRequest { client: ClientId(99), ..request(vec![9; 4096], 4) };
    let mut world = pipeline(stages, pace);
    let since = world.now;
    let session = world.submit(long());
    while world.stories[&session].tokens.is_empty() {
        world.step();
    }
    let alone = world.now - since;

    let mut world = pipeline(stages, pace);
    for client in 0..streams {
        world.submit(GenerateRequest { client: ClientId(client), ..request(vec![client as u32; 3], 7000) });
    }
    let mut heard = vec![(0, world.now); streams as usize];
    let mut gaps = |world: &mut World, until: &dyn Fn(&World) -> bool| {
        let mut gaps = vec![];
        while !until(world) {
            world.step();
            for (client, (tokens, at)) in heard.iter_mut().enumerate() {
                let now = world.stories[&SessionId(client as u64 + 1)].tokens.len();
                if now > *tokens {
                    gaps.push((world.now - *at).as_secs_f64());
                    (*tokens, *at) = (now, world.now);
                }
            }
        }
        gaps.sort_by(f64::total_cmp);
        gaps
    };
    let tokens = |world: &World| world.stories[&SessionId(1)].tokens.len();
    gaps(&mut world, &|world| tokens(world) > 50);
    let calm = gaps(&mut world, &|world| tokens(world) > 150);
    let since = world.now;
    let session = world.submit(long());
    let held = gaps(&mut world, &|world| !world.stories[&session].tokens.is_empty());
    ([calm, held], (world.now - since).as_secs_f64() / alone.as_secs_f64())
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[(sorted.len() as f64 * share) as usize]
}

#[test]
fn a_long_prompt_holds_up_no_stream() {
    for (stages, streams) in [(1, 1), (2, 1), (2, 4), (4, 4), (2, 8)] {
        let pace = WorldPace { base: millis(20.0), row: millis(3.0), hop: millis(0.3), uneven: 0.05, ..EVEN };
        let ([calm, held], times) = beside_a_long_prompt(stages, streams, pace);
        let (median, p99) = (quantile(&calm, 0.5), quantile(&held, 0.99));
        assert!(p99 <= 1.4 * median, "{streams} on {stages}: {p99:.4} s instead of {median:.4}");
        assert!(times < 8.0, "{streams} on {stages}: the prompt took {times:.1} times as long as alone");
    }
}

#[test]
fn a_long_prompt_gets_on_where_steps_are_coarse_and_disturbed() {
    for (tile, disturbed) in [(4, 0.0), (4, 0.02), (8, 0.02)] {
        for (stages, streams) in [(1, 1), (2, 1), (2, 4), (4, 4), (2, 8)] {
            let (base, row) = (millis(28.0 / stages as f64), millis(4.6 / stages as f64));
            let pace = WorldPace { base, row, hop: millis(0.3), uneven: 0.1, tile, disturbed };
            let ([calm, held], times) = beside_a_long_prompt(stages, streams, pace);
            let median = quantile(&held, 0.5);
            let longer = median / quantile(&calm, 0.5);
            assert!(longer <= 1.4, "{streams} on {stages}, by {tile}: {median:.4} s, {longer:.2} times as long");
            assert!(
                times < 80.0,
                "{streams} on {stages}, by {tile}: the prompt took {times:.1} times as long as alone"
            );
        }
    }
}

#[test]
fn a_crowd_is_let_in_at_once() {
    for (stages, clients, tile) in [(1, 8, 1), (1, 16, 4), (1, 32, 4), (2, 16, 4), (2, 32, 8)] {
        let (base, row) = (millis(28.0 / stages as f64), millis(4.6 / stages as f64));
        let pace = WorldPace { base, row, hop: millis(0.3), tile, ..EVEN };
        let mut world = pipeline(stages, pace);
        let since = world.now;
        let crowd: Vec<_> = (0..clients)
            .map(|i| world.submit(GenerateRequest { client: ClientId(i), ..request(vec![i as u32; 32], 200) }))
            .collect();
        while crowd.iter().any(|session| world.stories[session].tokens.is_empty()) {
            world.step();
        }
        let (took, alone) = (world.now - since, (pace.base + pace.row * (clients as u32 * 32)) * stages as u32);
        assert!(took < 2 * alone, "{clients} on {stages}, by {tile}: {took:?}, and {alone:?} for the prompts alone");
    }
}

#[test]
fn a_client_with_many_requests_starves_nobody() {
    let mut world = World::new(2, Limits { kv_positions: 1024, ..large() });
    world.up();
    for _ in 0..30 {
        world.submit(GenerateRequest { client: ClientId(1), ..request(vec![1; 200], 200) });
    }
    for _ in 0..200 {
        world.step();
    }
    let modest = world.submit(GenerateRequest { client: ClientId(2), ..request(vec![2; 20], 20) });
    while world.stories[&modest].finish.is_none() {
        world.step();
    }
    assert!(world.scheduler.waiting() > 20, "the modest one did not wait for the others");
    world.drain();
    world.check_stories();
}

#[test]
fn a_prompt_says_how_far_it_is_with_each_part() {
    let mut world = World::new(1, Limits { chunk_rows: 16, ..limits() });
    world.up();
    let session = world.submit(request(vec![3; 60], 2));
    world.drain();
    let story = &world.stories[&session];
    assert!(story.progress.is_sorted() && story.progress.len() >= 3, "{:?}", story.progress);
    assert!(story.progress.iter().all(|computed| (1..60).contains(computed)), "{:?}", story.progress);
}
