//! Workers that lose the coordinator because it has moved.

use super::*;

fn world() -> World {
    let mut world = World::new(Workers::AtLeast(2));
    world.joined_as("a", 1, GB);
    world.joined_as("b", 2, GB);
    world.now += SETTLE;
    assert_eq!(world.tick().iter().filter_map(sent_load).count(), 2);
    let actions = world.roster.displaced(world.now, &[WorkerId(1), WorkerId(2)]);
    assert!(matches!(actions[..], [Action::Down(PlanEpoch(1), _)]), "{actions:?}");
    world
}

#[test]
fn when_all_are_back_they_get_their_layers_at_once() {
    let mut world = world();
    assert!(world.tick().is_empty());
    world.joined_as("a", 1, GB);
    world.now += SETTLE;
    assert!(world.tick().is_empty(), "the other one is on its way");
    world.joined_as("b", 2, GB);
    assert_eq!(world.tick().iter().filter_map(sent_load).count(), 2);
}

#[test]
fn whoever_comes_back_gets_the_layers_that_it_had() {
    let mut world = world();
    world.joined_as("b", 2, GB);
    world.joined_as("a", 1, GB);
    // They have other numbers now, in the order of their coming.
    assert_eq!(world.tick().iter().filter_map(sent_load).collect::<Vec<_>>(), [(4, 0), (3, 1)]);
}

#[test]
fn a_worker_that_was_there_twice_gets_one_stage_when_it_is_there_once() {
    let mut world = World::new(Workers::AtLeast(2));
    // It has come back before its first connection is known to be lost.
    world.joined_as("a", 1, GB);
    world.joined_as("a-2", 1, GB);
    world.now += SETTLE;
    assert_eq!(world.tick().iter().filter_map(sent_load).collect::<Vec<_>>(), [(1, 0), (2, 1)]);
    world.roster.left(world.now, WorkerId(1), "gone");
    assert_eq!(world.tick().iter().filter_map(sent_load).collect::<Vec<_>>(), [(2, 0)]);
}

#[test]
fn who_does_not_come_back_is_not_waited_for_long() {
    let mut world = world();
    world.joined_as("a", 1, GB);
    world.now += Duration::from_secs(3);
    assert_eq!(world.tick().iter().filter_map(sent_load).count(), 1);
}
