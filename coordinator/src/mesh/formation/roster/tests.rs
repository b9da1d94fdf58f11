//! The roster, told what workers say.

mod returning;
mod ways;

use std::net::SocketAddr;

use qmesh_models::{spec::ModelSpec, weights::ModelFile};
use qmesh_net::{
    Downstream, LoadShard, MeasuredPoint, PeerId, Sections, Stock, Upstream, WeightAskers, WeightOrigin, WeightSources,
};

use super::{super::pipeline::SILENCE, change::ANNOUNCED, *};
use crate::mesh::{config::Measuring, status::MeshState};

#[test]
fn workers_become_a_pipeline_step_by_step() {
    let mut world = World::new(Workers::Exactly(2));
    world.join("a", GB);
    assert!(world.tick().is_empty());
    assert_eq!((world.roster.state(), world.roster.text()), (MeshState::Waiting, "waiting for workers: 1 of 2"));
    world.join("b", GB);
    let actions = world.tick();
    let loads: Vec<_> = actions.iter().filter_map(load).collect();
    assert_eq!(loads.iter().map(|l| layers(l)).collect::<Vec<_>>(), [(0, 2), (2, 3)]);
    for load in &loads {
        let spec: ModelSpec = serde_json::from_slice(&load.spec_json).unwrap();
        assert_eq!(spec.tensors.len(), load.tensor_hashes.len(), "a hash for each of its own tensors");
        assert!(spec.tensors.len() < world.roster.model.spec.tensors.len());
    }
    assert!(world.ready(1).is_empty());
    let routes = world.ready(2);
    // The last stage first, so that whoever dials finds the door open; then frames may go to the first.
    assert!(
        matches!(&routes[0], Action::Send(WorkerId(2), Message::Route(r)) if r.downstream == Downstream::Coordinator)
    );
    assert!(matches!(&routes[1], Action::Send(WorkerId(1), Message::Route(r)) if r.upstream == Upstream::Coordinator));
    assert!(matches!(routes[2], Action::OpenFrames(WorkerId(1), PlanEpoch(1))));
    assert!(world.linked(1).is_empty());
    assert!(matches!(world.linked(2)[..], [Action::Up(PlanEpoch(1), 2)]));
    assert_eq!(world.roster.state(), MeshState::Ready);
}

#[test]
fn a_lost_stage_brings_the_pipeline_down_and_the_rest_is_planned_anew() {
    let mut world = World::new(Workers::Exactly(2));
    world.up(&["a", "b"]);
    let actions = world.roster.left(world.now, WorkerId(2), "timed out");
    let down = actions.iter().find_map(|a| if let Action::Down(_, why) = a { Some(why.clone()) } else { None });
    assert_eq!(down.as_deref(), Some("lost b (layers 2-2): timed out"));
    // One worker holds the model, so one worker it is.
    let actions = world.tick();
    assert!(matches!(actions.iter().find_map(load), Some(l) if layers(l) == (0, 3) && l.epoch == PlanEpoch(2)));
}

#[test]
fn layers_are_dealt_when_everybody_has_said_how_fast_it_is() {
    let formation = Formation { measuring: Measuring::On, ..Formation::new(Workers::AtLeast(2)) };
    let mut world = World::with(formation);
    let answer = |ps| Measured {
        points: vec![MeasuredPoint { rows: 1, layers_ps_per_kib: ps, head_ps_per_kib: ps }],
        ..Measured::default()
    };
    for (name, key) in [("a", 1), ("b", 2)] {
        let asked = world.joined_as(name, key, GB);
        assert!(
            matches!(asked[..], [Action::Send(WorkerId(id), Message::Measure(_))] if id == u64::from(key)),
            "{asked:?}"
        );
    }
    world.now += SETTLE;
    assert!(world.tick().is_empty(), "two answers are missing");
    // Times as of a slow machine: beside them a link costs little.
    world.roster.measured(world.now, WorkerId(1), answer(3_000_000_000)).unwrap();
    assert!(world.tick().is_empty(), "one answer is missing");
    world.roster.measured(world.now, WorkerId(2), answer(1_000_000_000)).unwrap();
    let loads: Vec<_> = world.tick().iter().filter_map(sent_load).collect();
    assert_eq!(loads.len(), 2);
    let prediction = world.roster.prediction().expect("both speeds are known");
    assert!(prediction.stage_ms.iter().all(|&ms| ms > 0.0), "{prediction:?}");
    assert!(matches!(world.roster.measured(world.now, WorkerId(2), answer(1)), Err(Misconduct::Unasked(_))));
    // Who takes far longer than that is found out.
    let hours = |n: u64| StageReport {
        epoch: PlanEpoch(1),
        steps: n * 20,
        rows: n * 20,
        compute_us: n << 40,
        ..StageReport::default()
    };
    let slow: Vec<_> = (1..=4).map(|n| world.roster.report(WorkerId(1), hours(n)).is_some()).collect();
    assert_eq!(slow, [false, false, true, false]);
    // Who comes back is known.
    world.roster.left(world.now, WorkerId(1), "gone");
    assert!(world.joined_as("a", 1, GB).is_empty());
}

#[test]
fn who_does_not_say_how_fast_it_is_keeps_nobody_waiting_for_long() {
    let mut world = World::with(Formation { measuring: Measuring::On, ..Formation::new(Workers::Exactly(1)) });
    assert_eq!(world.joined_as("a", 1, GB).len(), 1);
    assert!(world.tick().is_empty());
    world.now += Duration::from_secs(7);
    assert_eq!(world.tick().iter().filter_map(load).count(), 1);
    assert_eq!(world.roster.prediction(), None);
}

#[test]
fn pins_and_exclusions_are_kept() {
    let pins = [("b".to_owned(), 0..1)].into_iter().collect();
    let excluded = ["c".to_owned()].into_iter().collect();
    let mut world = World::with(Formation { pins, excluded, ..Formation::new(Workers::WhenItFits) });
    world.join("a", GB);
    world.join("c", GB);
    world.now += SETTLE;
    assert!(world.tick().is_empty());
    assert_eq!(world.roster.text(), "waiting for b, which is pinned to layers 0-0");
    world.join("b", GB);
    world.now += SETTLE;
    let actions = world.tick();
    assert_eq!(actions.iter().filter_map(sent_load).collect::<Vec<_>>(), [(3, 0), (1, 1)]);
    assert_eq!(actions.iter().filter_map(load).map(layers).collect::<Vec<_>>(), [(0, 1), (1, 3)]);
}

#[test]
fn a_spare_is_left_alone_until_it_is_needed() {
    let mut world = World::new(Workers::Exactly(2));
    world.up(&["a", "b"]);
    world.join("c", GB);
    assert!(world.tick().is_empty());
    world.roster.left(world.now, WorkerId(1), "gone");
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(layers).collect();
    assert_eq!(loads, [(0, 2), (2, 3)], "two stages again");
}

#[test]
fn when_it_fits_waits_for_enough_memory_and_deals_again_for_who_joins() {
    let mut world = World::new(Workers::WhenItFits);
    world.join("tiny", 1 << 20);
    world.now += SETTLE;
    assert!(world.tick().is_empty());
    assert_eq!(world.roster.state(), MeshState::Failed);
    assert!(world.roster.text().contains("MB"), "{}", world.roster.text());
    world.join("a", GB);
    world.now += SETTLE;
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(layers).collect();
    assert_eq!(loads, [(0, 3)], "the one that is large enough");
    world.join("b", GB);
    world.now += SETTLE;
    let actions = world.tick();
    assert!(actions.iter().any(|a| matches!(a, Action::Send(WorkerId(2), Message::Unload { epoch: PlanEpoch(1) }))));
    assert_eq!(actions.iter().filter_map(load).count(), 2);
}

#[test]
fn a_worker_that_cannot_load_or_hangs_is_left_out() {
    let mut world = World::new(Workers::AtLeast(1));
    world.join("a", GB);
    world.join("b", GB);
    world.now += SETTLE;
    world.tick();
    let failed = ShardStatus { phase: ShardPhase::Failed, text: "needs 9 GB".to_owned(), ..status(1) };
    world.roster.shard_status(world.now, WorkerId(1), failed).unwrap();
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(layers).collect();
    assert_eq!(loads, [(0, 3)], "the other takes it all");
    world.now += SILENCE + Duration::from_secs(1);
    world.tick();
    assert!(world.tick().is_empty(), "nobody is left");
    assert_eq!(world.roster.state(), MeshState::Failed);
}

#[test]
fn words_of_an_old_epoch_change_nothing() {
    let mut world = World::new(Workers::Exactly(1));
    world.up(&["a"]);
    assert!(world.roster.shard_status(world.now, WorkerId(1), status(0)).unwrap().is_empty());
    assert!(world.roster.linked(WorkerId(1), PlanEpoch(0), None).unwrap().is_empty());
    assert_eq!(world.roster.state(), MeshState::Ready);
}

#[test]
fn only_who_has_a_stage_may_speak_for_a_plan_and_only_once() {
    let mut world = World::new(Workers::Exactly(2));
    world.up(&["a", "b"]);
    world.join("c", GB);
    let (now, here) = (world.now, PlanEpoch(1));
    let roster = &mut world.roster;
    assert_eq!(roster.linked(WorkerId(3), here, None).unwrap_err(), Misconduct::NoStage(here));
    assert_eq!(roster.shard_status(now, WorkerId(3), status(1)).unwrap_err(), Misconduct::NoStage(here));
    assert_eq!(roster.linked(WorkerId(1), PlanEpoch(9), None).unwrap_err(), Misconduct::NoPlan(PlanEpoch(9)));
    assert!(matches!(roster.linked(WorkerId(1), here, None).unwrap_err(), Misconduct::Twice(_)));
    assert!(matches!(roster.shard_status(now, WorkerId(1), status(1)).unwrap_err(), Misconduct::Twice(_)));
    assert_eq!(roster.may_sample(WorkerId(1), here), Err(Misconduct::NotLast(0)));
    assert_eq!(roster.may_sample(WorkerId(2), here), Ok(true));
    assert_eq!(roster.state(), MeshState::Ready);
}

#[test]
fn who_joins_hears_who_has_its_tensors_and_those_hear_who_will_ask() {
    let mut world = World::new(Workers::AtLeast(2));
    world.join("a", GB);
    world.join("b", GB);
    world.now += SETTLE;
    let first = world.tick();
    let held = |load: &LoadShard| {
        let sources = WeightSources::find(&load.sections, load.tensor_hashes.len()).unwrap();
        let held = |of: &qmesh_net::TensorSources| of.sources.iter().all(|source| source.stock == Stock::Held);
        (sources.tensors.iter().filter(|of| held(of)).count(), sources.tensors.len())
    };
    assert!(first.iter().filter_map(load).all(|load| held(load).0 == 0), "nobody has anything yet");
    (1..=2).for_each(|worker| drop(world.ready(worker)));
    (1..=2).for_each(|worker| drop(world.linked(worker)));
    world.roster.proved(world.roster.epoch());
    world.join("c", GB);
    world.now += SETTLE;
    let actions = world.tick();
    let loads: Vec<_> = actions.iter().filter_map(load).collect();
    let asked = loads.iter().filter(|load| {
        let askers = WeightAskers::find(&load.sections, load.tensor_hashes.len()).unwrap();
        askers.peers.contains(&PeerId([3; 32]))
    });
    assert!(asked.count() > 0, "somebody lets the new one ask");
    let to_new = |action: &&Action| sent_load(action).is_some_and(|(worker, _)| worker == 3);
    let to_new = actions.iter().find(to_new).and_then(load).unwrap();
    assert_eq!(held(to_new), (to_new.tensor_hashes.len(), to_new.tensor_hashes.len()), "all it gets is there");
}

#[test]
fn the_status_says_where_tensors_came_from() {
    let mut world = World::new(Workers::Exactly(1));
    world.join("a", GB);
    world.tick();
    let mut said = status(1);
    WeightOrigin { coordinator_bytes: 3, peer_bytes: 4 }.put(&mut said.sections).unwrap();
    world.roster.shard_status(world.now, WorkerId(1), said).unwrap();
    let stage = &world.roster.stage_status()[0];
    assert_eq!((stage.coordinator_bytes, stage.peer_bytes), (3, 4));
}

#[test]
fn a_change_is_made_beside_what_serves() {
    let mut world = World::new(Workers::AtLeast(2));
    world.serve(&["a", "b"]);
    world.join("c", GB);
    world.now += SETTLE;
    let actions = world.tick();
    assert_eq!(actions.iter().filter_map(load).count(), 3);
    assert_eq!(actions.len(), 3, "nothing is unloaded, nobody is told that anything is down: {actions:?}");
    assert_eq!((world.roster.state(), world.roster.epoch()), (MeshState::Ready, PlanEpoch(1)));
    (1..=3).for_each(|worker| drop(world.said_ready(worker, 2)));
    (1..=2).for_each(|worker| drop(world.roster.linked(WorkerId(worker), PlanEpoch(2), None).unwrap()));
    let up = world.roster.linked(WorkerId(3), PlanEpoch(2), None).unwrap();
    assert!(matches!(up[..], [Action::Up(PlanEpoch(2), 3)]), "{up:?}");
    assert!(matches!(world.roster.proved(PlanEpoch(2))[..], [Action::Follow(PlanEpoch(2), 3)]));
    let change = world.roster.change(world.now).unwrap();
    assert!(change.epoch == 2 && change.text.contains("following"), "{change:?}");
    let unloads = world.roster.followed(PlanEpoch(2));
    assert_eq!(unloads.iter().filter_map(unload).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    assert_eq!((world.roster.state(), world.roster.epoch()), (MeshState::Ready, PlanEpoch(2)));
    assert!(world.roster.change(world.now).is_none());
}

#[test]
fn who_fails_on_the_way_in_leaves_what_serves_alone() {
    let mut world = World::new(Workers::AtLeast(2));
    world.serve(&["a", "b"]);
    world.join("c", GB);
    world.now += SETTLE;
    world.tick();
    let actions = world.roster.left(world.now, WorkerId(3), "killed");
    assert!(matches!(&actions[..], [Action::Down(PlanEpoch(2), _)]), "{actions:?}");
    let unloads = world.tick();
    assert_eq!(unloads.iter().filter_map(unload).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    assert_eq!((world.roster.state(), world.roster.epoch()), (MeshState::Ready, PlanEpoch(1)));
    // Once may happen to anybody; the second time it is left out, and says why.
    for worker in [4, 5] {
        world.join_as("c", 3, GB);
        world.now += SETTLE;
        assert_eq!(world.tick().iter().filter_map(load).count(), if worker == 4 { 3 } else { 0 });
        if worker == 4 {
            world.roster.left(world.now, WorkerId(worker), "killed");
            world.tick();
        }
    }
    let notes: Vec<_> = world.roster.worker_status(world.now, |_| 0.0).into_iter().filter_map(|w| w.note).collect();
    assert!(notes.len() == 1 && notes[0].starts_with("left out for 14 s more"), "{notes:?}");
    world.now += Duration::from_secs(16);
    assert_eq!(world.tick().iter().filter_map(load).count(), 3, "it is tried again");
}

#[test]
fn what_was_given_up_beside_what_serves_goes_before_anything_new_comes() {
    let mut world = World::new(Workers::AtLeast(2));
    world.serve(&["a", "b"]);
    world.join("c", GB);
    world.now += SETTLE;
    world.tick();
    world.roster.left(world.now, WorkerId(3), "killed");
    world.join("d", GB);
    world.now += SETTLE;
    let actions = world.tick();
    // With a third shard, a and b would have to guess which of the two before it serves.
    assert_eq!(actions.iter().filter_map(unload).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    let last_unload = actions.iter().rposition(|action| unload(action).is_some());
    assert!(last_unload < actions.iter().position(|action| load(action).is_some()), "{actions:?}");
}

#[test]
fn a_joiner_that_would_not_pay_stands_by() {
    let mut world = World::new(Workers::WhenItFits);
    world.threads = 8;
    world.serve(&["a", "b", "c"]);
    world.join("d", GB);
    world.now += SETTLE;
    assert!(world.tick().is_empty(), "three layers are on three workers");
    assert_eq!(world.roster.epoch(), PlanEpoch(1));
}

#[test]
fn neighbours_that_cannot_reach_each_other_are_kept_apart() {
    let mut world = World::new(Workers::WhenItFits);
    world.serve(&["a"]);
    world.join("b", GB);
    world.now += SETTLE;
    assert_eq!(world.tick().iter().filter_map(load).count(), 2);
    (1..=2).for_each(|worker| drop(world.said_ready(worker, 2)));
    world.roster.link_broken(world.now, WorkerId(1), PlanEpoch(2), "no route to host");
    // The other way round may work.
    let loads: Vec<_> = world.tick().iter().filter_map(sent_load).collect();
    assert_eq!(loads, [(2, 0), (1, 1)]);
    (1..=2).for_each(|worker| drop(world.said_ready(worker, 3)));
    world.now += Duration::from_secs(21);
    let actions = world.tick();
    assert!(
        matches!(&actions[..], [Action::Down(PlanEpoch(3), why)] if why.contains("b cannot reach a")),
        "{actions:?}"
    );
    assert!(world.tick().iter().all(|a| load(a).is_none()), "neither way works");
    assert_eq!((world.roster.state(), world.roster.epoch()), (MeshState::Ready, PlanEpoch(1)));
    let note = world.roster.worker_status(world.now, |_| 0.0).remove(1).note.unwrap();
    assert!(note.contains("cannot reach"), "{note}");
}

#[test]
fn a_model_that_fails_the_probe_under_two_plans_is_given_up() {
    let mut world = World::new(Workers::Exactly(1));
    world.up(&["a"]);
    world.roster.unprovable(world.now, PlanEpoch(1), "a NaN in layer 2");
    assert_eq!(world.tick().iter().filter_map(load).count(), 1);
    world.roster.unprovable(world.now, PlanEpoch(2), "a NaN in layer 2");
    world.now += Duration::from_secs(3600);
    assert!(world.tick().is_empty());
    assert_eq!(world.roster.state(), MeshState::Failed);
    assert!(world.roster.text().contains("a NaN in layer 2"), "{}", world.roster.text());
}

#[test]
fn where_both_shards_do_not_fit_the_pause_is_announced() {
    let mut world = World::new(Workers::AtLeast(1));
    let needed = world.needed_alone();
    world.memory = needed;
    world.serve(&["a"]);
    world.join("b", GB);
    world.now += SETTLE;
    assert!(world.tick().is_empty());
    assert!(world.roster.change(world.now).unwrap().text.contains("answers wait"));
    world.now += ANNOUNCED;
    let actions = world.tick();
    assert!(matches!(actions[0], Action::Down(PlanEpoch(1), _)), "{actions:?}");
    assert_eq!(actions.iter().filter_map(unload).collect::<Vec<_>>(), [(1, 1)]);
    assert_eq!(actions.iter().filter_map(load).count(), 2);
}

#[test]
fn names_are_unique() {
    let mut world = World::new(Workers::WhenItFits);
    world.join("a", GB);
    assert_eq!(world.roster.free_name("a"), "a-2");
    assert_eq!(world.roster.free_name("b"), "b");
}

struct World {
    roster: Roster,
    now: Instant,
    next: u64,
    threads: u32,
    /// Of those who join in a crowd.
    memory: u64,
}

impl World {
    fn new(workers: Workers) -> Self {
        Self::with(Formation::new(workers))
    }

    fn with(formation: Formation) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
        let spec = ModelFile::open(path).unwrap().spec().clone();
        let model = PlannedModel {
            name: "tiny".to_owned(),
            id: [0; 32],
            hashes: (0..).map(|tensor| [tensor; 32]).take(spec.tensors.len()).collect(),
            spec,
            context: 64,
            kv_positions: 64,
            chunk_rows: 16,
        };
        let roster = Roster::new(Arc::new(model), formation);
        Self { roster, now: Instant::now(), next: 1, threads: 1, memory: GB }
    }

    fn join(&mut self, name: &str, memory_bytes: u64) {
        self.join_as(name, self.next as u8, memory_bytes);
    }

    fn join_as(&mut self, name: &str, key: u8, memory_bytes: u64) {
        assert!(self.joined_as(name, key, memory_bytes).is_empty());
    }

    fn joined_as(&mut self, name: &str, key: u8, memory_bytes: u64) -> Vec<Action> {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let (name, peer, threads) = (name.to_owned(), PeerId([key; 32]), self.threads);
        let joined = Joined::new(name, peer, address, memory_bytes, threads);
        self.next += 1;
        self.roster.joined(self.now, WorkerId(self.next - 1), joined)
    }

    /// Memory of a worker that holds everything.
    fn needed_alone(&self) -> u64 {
        let mut world = Self::new(Workers::Exactly(1));
        world.up(&["a"]);
        world.roster.stage_status()[0].planned_bytes
    }

    fn tick(&mut self) -> Vec<Action> {
        self.roster.tick(self.now)
    }

    fn ready(&mut self, worker: u64) -> Vec<Action> {
        self.said_ready(worker, self.roster.epoch().0)
    }

    fn said_ready(&mut self, worker: u64, epoch: u32) -> Vec<Action> {
        self.roster.shard_status(self.now, WorkerId(worker), status(epoch)).unwrap()
    }

    fn linked(&mut self, worker: u64) -> Vec<Action> {
        self.roster.linked(WorkerId(worker), self.roster.epoch(), None).unwrap()
    }

    fn up(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.join(name, self.memory));
        self.now += SETTLE;
        self.tick();
        (1..self.next).for_each(|worker| drop(self.ready(worker)));
        (1..self.next).for_each(|worker| drop(self.linked(worker)));
        assert_eq!(self.roster.state(), MeshState::Ready);
    }

    fn serve(&mut self, names: &[&str]) {
        self.up(names);
        let actions = self.roster.proved(self.roster.epoch());
        assert!(matches!(actions[..], [Action::Serve(PlanEpoch(1), _)]), "{actions:?}");
    }
}

fn status(epoch: u32) -> ShardStatus {
    ShardStatus {
        epoch: PlanEpoch(epoch),
        phase: ShardPhase::Ready,
        bytes_done: 1,
        bytes_total: 1,
        text: String::new(),
        peak_memory_bytes: 1,
        sections: Sections::default(),
    }
}

/// The first layer to load, and the one after the last.
fn layers(load: &LoadShard) -> (u32, u32) {
    (load.layers.start, load.layers.end)
}

fn load(action: &Action) -> Option<&LoadShard> {
    if let Action::Send(_, Message::Load(load)) = action { Some(load) } else { None }
}

/// Who was told to load which stage.
fn sent_load(action: &Action) -> Option<(u64, u16)> {
    if let Action::Send(worker, Message::Load(load)) = action { Some((worker.0, load.stage.0)) } else { None }
}

/// Who was told to unload which epoch.
fn unload(action: &Action) -> Option<(u64, u32)> {
    if let Action::Send(worker, Message::Unload { epoch }) = action { Some((worker.0, epoch.0)) } else { None }
}

const GB: u64 = 1 << 30;
