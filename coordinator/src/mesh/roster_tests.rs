//! The roster, told what workers say.

use qmesh_models::weights::ModelFile;

use super::*;

#[test]
fn workers_become_a_pipeline_step_by_step() {
    let mut world = World::new(Workers::Exactly(2));
    world.join("a", GB);
    assert!(world.tick().is_empty());
    assert_eq!((world.roster.state(), world.roster.text()), (MeshState::Waiting, "waiting for workers: 1 of 2"));
    world.join("b", GB);
    let actions = world.tick();
    let loads: Vec<_> = actions.iter().filter_map(load).collect();
    assert_eq!(loads.iter().map(|l| l.layers).collect::<Vec<_>>(), [(0, 2), (2, 3)]);
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
    let down = actions.iter().find_map(|a| if let Action::Down(why) = a { Some(why.clone()) } else { None });
    assert_eq!(down.as_deref(), Some("lost b (layers 2-2): timed out"));
    // One worker holds the model, so one worker it is.
    let actions = world.tick();
    assert!(matches!(actions.iter().find_map(load), Some(l) if l.layers == (0, 3) && l.epoch == PlanEpoch(2)));
}

#[test]
fn a_spare_is_left_alone_until_it_is_needed() {
    let mut world = World::new(Workers::Exactly(2));
    world.up(&["a", "b"]);
    world.join("c", GB);
    assert!(world.tick().is_empty());
    world.roster.left(world.now, WorkerId(1), "gone");
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(|l| l.layers).collect();
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
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(|l| l.layers).collect();
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
    world.roster.shard_status(world.now, WorkerId(1), failed);
    let loads: Vec<_> = world.tick().iter().filter_map(load).map(|l| l.layers).collect();
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
    assert!(world.roster.shard_status(world.now, WorkerId(1), status(0)).is_empty());
    assert!(world.roster.linked(WorkerId(1), PlanEpoch(0)).is_empty());
    assert_eq!(world.roster.state(), MeshState::Ready);
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
}

impl World {
    fn new(workers: Workers) -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
        let spec = ModelFile::open(path).unwrap().spec().clone();
        let model = PlannedModel {
            name: "tiny".to_owned(),
            id: [0; 32],
            hashes: vec![[7; 32]; spec.tensors.len()],
            spec,
            context: 64,
            kv_positions: 64,
            chunk_rows: 16,
        };
        let roster = Roster::new(Arc::new(model), Formation { workers, cut: None, workload: plan::Workload::Mixed });
        Self { roster, now: Instant::now(), next: 1 }
    }

    fn join(&mut self, name: &str, memory_bytes: u64) {
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        let joined = Joined { name: name.to_owned(), peer: PeerId([1; 32]), address, memory_bytes, threads: 1 };
        self.roster.joined(self.now, WorkerId(self.next), joined);
        self.next += 1;
    }

    fn tick(&mut self) -> Vec<Action> {
        self.roster.tick(self.now)
    }

    fn ready(&mut self, worker: u64) -> Vec<Action> {
        self.roster.shard_status(self.now, WorkerId(worker), status(self.roster.epoch().0))
    }

    fn linked(&mut self, worker: u64) -> Vec<Action> {
        self.roster.linked(WorkerId(worker), self.roster.epoch())
    }

    fn up(&mut self, names: &[&str]) {
        names.iter().for_each(|name| self.join(name, GB));
        self.tick();
        (1..self.next).for_each(|worker| drop(self.ready(worker)));
        (1..self.next).for_each(|worker| drop(self.linked(worker)));
        assert_eq!(self.roster.state(), MeshState::Ready);
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
    }
}

fn load(action: &Action) -> Option<&LoadShard> {
    if let Action::Send(_, Message::Load(load)) = action { Some(load) } else { None }
}

const GB: u64 = 1 << 30;
