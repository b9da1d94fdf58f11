//! Two plans at a time: what one of them does is nothing to the other.

use super::*;

fn load(epoch: u32, layers: std::ops::Range<u32>) -> Message {
    Message::Load(load_shard(epoch, layers))
}

fn unload(epoch: u32) -> Message {
    Message::Unload { epoch: PlanEpoch(epoch) }
}

#[test]
fn a_plan_comes_up_beside_the_one_that_serves() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    assert_eq!(rig.step(4, 1, 1), ["compute 1"]);

    let fetch = rig.state.handle(rig.now, Event::Message(load(5, 0..3)));
    let [Action::Fetch(FetchRequest { turn: Turn(2), taken_over, beside, .. })] = &fetch[..] else {
        panic!("{fetch:?}")
    };
    let same = load_shard(4, 0..2).tensor_hashes.len();
    assert_eq!(taken_over.len(), same, "all that the first holds");
    let [beside] = &beside[..] else { panic!("{beside:?}") };
    assert_eq!(beside.epoch, PlanEpoch(4));
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);
    assert_eq!(rig.message(open(5)), ["tell Refused 5 in 5"], "not ready yet");
    assert_eq!(rig.message(open(4)), ["open 5"]);
    let status = rig.state.handle(rig.now, Event::Done(Done::Loading { turn: Turn(2), bytes_done: 9, bytes_total: 9 }));
    assert!(status.is_empty(), "it is not loading yet");

    rig.come_up(2);
    assert_eq!(rig.step(4, 1, 2), ["compute 2"]);
    rig.link(5, 2);
    assert_eq!(rig.message(open(5)), ["open 5"]);
    assert_eq!(rig.step(5, 2, 1), ["compute 1"], "steps count for each plan");
    assert_eq!(rig.done(stepped(5, 2, 1)), ["send 1"]);
    assert_eq!(rig.done(stepped(4, 1, 2)), ["send 2"]);
    assert_eq!(rig.on(Event::Tick), ["tell report of 2 steps", "tell report of 1 steps"]);

    // The old one goes; the new one does not notice.
    assert_eq!(rig.message(unload(4)), ["unload 1", "unlink 1"]);
    assert!(rig.on(Event::Link(LinkNews::UpstreamBroken { link: LinkId(1), text: "done".into() })).is_empty());
    assert!(rig.on(Event::Link(LinkNews::DownstreamBroken { turn: Turn(1), text: "done".into() })).is_empty());
    assert_eq!(rig.message(open(4)), ["tell Refused 5 in 4"]);
    assert_eq!(rig.step(5, 2, 2), ["compute 2"]);
    let broken = Event::Link(LinkNews::UpstreamBroken { link: LinkId(2), text: "cut".into() });
    assert_eq!(rig.on(broken), ["tell Fault Link None"]);
}

#[test]
fn a_plan_that_never_came_up_makes_way_for_the_next_one() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    assert_eq!(rig.message(load(5, 0..3)), ["fetch for 2"]);
    assert_eq!(rig.message(load(6, 1..3)), ["stop fetching for 2", "fetch for 3"]);
    assert!(rig.on(fetched(2)).is_empty());
    assert!(rig.on(Event::Fetch(FetchNews::Failed { turn: Turn(2), text: "late".into() })).is_empty());
    assert_eq!(rig.on(fetched(3)), ["load for 3"]);

    // One that is being loaded leaves the memory before the next one is fetched.
    assert!(rig.message(load(7, 0..3)).is_empty());
    let late = Done::NotLoaded { turn: Turn(3), failure: Failure::NoShard };
    assert_eq!(rig.done(late), ["fetch for 4"]);
    rig.come_up(4);
    assert_eq!(rig.message(load(8, 0..1)), ["unload 4"], "it was never linked");
    assert_eq!(rig.step(4, 1, 1), ["compute 1"], "the first one serves on");
    assert_eq!(rig.done(Done::Unloaded { turn: Turn(4) }), ["fetch for 5"]);
    assert_eq!(rig.state.stages[1].own_bytes(), 0, "what made way was taken over");

    let nonsense = LoadShard { spec_json: b"{}".to_vec(), ..load_shard(9, 0..2) };
    assert_eq!(rig.message(Message::Load(nonsense)), ["tell Failed"]);
    rig.come_up(5);
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);
}

#[test]
fn of_two_plans_that_stand_the_one_in_use_stays() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    rig.load(5, 2);
    rig.link(5, 2);
    rig.step(5, 2, 1);
    rig.step(4, 1, 1);
    assert_eq!(rig.message(load(6, 0..2)), ["unload 2", "unlink 2"], "the first one had the last frame");
    assert!(rig.done(stepped(5, 2, 1)).is_empty());
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1"]);
}

#[test]
fn an_unload_ends_a_plan_however_far_it_is() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.message(load(5, 0..3));
    assert_eq!(rig.message(unload(5)), ["stop fetching for 2"]);
    assert_eq!(rig.message(load(6, 0..3)), ["fetch for 3"]);
    rig.message(route(6, Upstream::Coordinator));
    rig.on(fetched(3));
    let abandoned = Arc::downgrade(&rig.state.stages[1].wanted);
    let loaded = rig.loaded(3);
    assert_eq!(rig.message(unload(6)), ["unlink 3"]);
    assert_eq!(abandoned.strong_count(), 0, "who loads it sees that");
    assert!(rig.message(load(7, 0..3)).is_empty(), "the memory is not free yet");
    assert_eq!(rig.done(loaded), ["fetch for 4"], "and nobody takes a seat");
    rig.message(unload(4));
    assert_eq!(rig.state.stages.len(), 1);
    let late = Event::Link(LinkNews::Arrived { link: LinkId(9), peer: COORDINATOR, epoch: PlanEpoch(6) });
    assert_eq!(rig.on(late), ["refuse 9"]);
}

#[test]
fn what_a_plan_took_over_outlives_the_plan_that_had_it() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.message(load(5, 0..2));
    assert_eq!(rig.state.stages[1].own_bytes(), 0);
    rig.message(unload(4));
    rig.done(Done::Unloaded { turn: Turn(1) });
    let actions = rig.state.handle(rig.now, fetched(2));
    let [Action::Load(loading)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(loading.taken_over.len(), load_shard(5, 0..2).tensor_hashes.len());
    assert_eq!(loading.bytes_total, 0);
}

#[test]
fn plans_take_turns_and_hold_their_own_number_of_frames() {
    let mut rig = Rig::new();
    rig.load(4, 1);
    rig.link(4, 1);
    rig.load(5, 2);
    rig.link(5, 2);
    let computed: Vec<_> = (1..=4).flat_map(|step| rig.step(4, 1, step)).collect();
    assert_eq!(computed, ["compute 1", "compute 2"], "the others wait");
    assert!(!rig.state.has_room(Turn(1)) && rig.state.has_room(Turn(2)));
    assert!(rig.step(5, 2, 11).is_empty() && rig.step(5, 2, 12).is_empty());
    assert_eq!(rig.done(stepped(4, 1, 1)), ["send 1", "compute 11"]);
    assert_eq!(rig.done(stepped(4, 1, 2)), ["send 2", "compute 3"]);
    assert_eq!(rig.done(stepped(5, 2, 11)), ["send 11", "compute 12"]);

    // What is said of a session comes behind its frames, and waits for no other plan.
    assert_eq!(rig.step(4, 1, 5), [] as [&str; 0]);
    let close = |epoch| Message::Close { epoch: PlanEpoch(epoch), session: SessionId(5) };
    assert!(rig.message(close(4)).is_empty());
    assert_eq!(rig.message(close(5)), ["close 5"]);
    assert_eq!(rig.state.queued(), 3);
    assert_eq!(rig.message(unload(4)), ["unload 1", "unlink 1"]);
    assert_eq!(rig.state.queued(), 0, "what waited went with the plan");
    assert!(rig.done(stepped(4, 1, 3)).is_empty());
}
