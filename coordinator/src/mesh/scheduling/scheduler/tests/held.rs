//! Texts that are free but for parts of them.

use super::*;

#[test]
fn drafts_and_lost_pipelines_change_no_text_that_is_held_in_parts() {
    let (ids, mut drafted, mut held) = ((0..60).map(|i| i % 5).collect::<Vec<u32>>(), 0, 0);
    for (seed, speculation) in [(1, Speculation::On), (2, Speculation::On), (3, Speculation::Off), (4, Speculation::On)]
    {
        let mut world = World::new(seed, Limits { speculation, ..limits() });
        world.up();
        let grammar = fifty::held();
        let asked = |start: usize| GenerateRequest {
            grammar: Some(Arc::clone(&grammar)),
            ends: Arc::new([fifty::END]),
            ..request(ids[start..].to_vec(), 90)
        };
        let sessions: Vec<_> = (0..5).map(|start| world.submit(asked(start))).collect();
        for _ in 0..12 {
            world.step();
        }
        world.down();
        world.up();
        for _ in 0..12 {
            world.step();
        }
        world.next_up();
        world.drain();
        world.check_stories();
        for session in &sessions {
            let text = fifty::text(&world.stories[session].tokens);
            for (at, _) in text.match_indices("34").filter(|(at, _)| at + 7 <= text.len()) {
                let part = &text[at + 2..at + 7];
                let digits = part.strip_prefix('[').and_then(|part| part.strip_suffix(']'));
                assert!(digits.is_some_and(|digits| digits.parse::<u16>().is_ok()), "{part} in {text}");
                held += 1;
            }
        }
        assert!(world.masks.is_empty(), "masks without rows");
        drafted += world.scheduler.totals.accepted_tokens;
        assert!(world.scheduler.lost.is_empty());
    }
    assert!(drafted > 20 && held > 10, "{drafted} drafted tokens were right, {held} parts held");
}
