//! Prompts that become vectors.

use qmesh_models::footprint::SUMMED_SEQUENCES;

use super::*;
use crate::generate::Pooling;

#[test]
fn a_prompt_becomes_the_same_vector_however_it_is_cut() {
    for (seed, chunk_rows) in (1..).zip([1, 2, 7, 16, 64]) {
        let mut world = World::new(seed, Limits { chunk_rows, ..limits() });
        world.up();
        for pooling in [Pooling::Mean, Pooling::First, Pooling::Last] {
            for ids in [(0..150).map(|i| i % 40).collect(), vec![9]] {
                let session = world.submit(GenerateRequest {
                    prompt_rows: PromptRows::Pooled(pooling),
                    // Whatever it says.
                    ..request(ids, chunk_rows)
                });
                world.drain();
                let finish = world.stories[&session].finish.as_ref().unwrap();
                assert_eq!((finish.reason, finish.generated_tokens), (FinishReason::Length, 0));
            }
        }
        world.check_stories();
    }
}

#[test]
fn as_many_prompts_are_summed_in_a_step_as_a_stage_takes() {
    let mut world = World::new(4, Limits { chunk_rows: 64, kv_positions: 1 << 14, ..limits() });
    world.up();
    let prompt_rows = PromptRows::Pooled(Pooling::Mean);
    for id in 0..30 {
        world.submit(GenerateRequest { prompt_rows, ..request(vec![id; 2], 0) });
    }
    let actions = world.scheduler.pump(world.now);
    world.carry_out(actions);
    for (_, session) in std::mem::take(&mut world.unanswered) {
        (0..world.stages).for_each(|_| world.scheduler.opened(world.epoch, session));
    }
    // All are there now.
    let actions = world.scheduler.pump(world.now);
    world.carry_out(actions);
    let sums = |frame: &Frame| frame.segments.iter().filter(|segment| segment.wants.is_sum()).count();
    assert_eq!(world.frames.front().map(|(.., frame)| sums(frame)), Some(SUMMED_SEQUENCES));
    world.drain();
    world.check_stories();
}
