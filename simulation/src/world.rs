//! The world: what happens, in the order of its virtual time, to one coordinator and its workers.

mod coordinator;
mod drafter;
mod idle;
mod link;
mod machine;
mod mishap;
mod request;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use qmesh_coordinator::mesh::simulation::SimulatedCoordinator;
use qmesh_net::{PeerId, PlanEpoch, SessionId};

use self::{
    drafter::Drafter,
    idle::Quiet,
    link::{Connection, Link},
    machine::Machine,
    request::Asked,
};
use crate::{
    Plant,
    agenda::{Agenda, Happening},
    random::Random,
    scenario::{Nonsense, Scenario},
    story::Story,
};

/// One world, from its first moment to its end.
pub struct World {
    scenario: Scenario,
    random: Random,
    plant: Option<Plant>,
    /// The moment that virtual time is counted from. Nothing depends on when it was.
    start: Instant,
    now: Duration,
    agenda: Agenda,
    story: Story,
    coordinator: SimulatedCoordinator,
    machines: Vec<Machine>,
    connections: BTreeMap<u64, Connection>,
    links: BTreeMap<u64, Link>,
    /// The coordinator's links to first stages.
    feeds: BTreeMap<PlanEpoch, u64>,
    /// Machines that cannot reach each other.
    blocked: BTreeSet<(usize, usize)>,
    asked: BTreeMap<SessionId, Asked>,
    drafter: Option<Drafter>,
    /// Requests still to come.
    to_ask: usize,
    /// Beginnings that many prompts have.
    beginnings: Vec<Vec<u32>>,
    numbered: u64,
    calm: bool,
    quiet: Option<Quiet>,
    over: bool,
}

impl World {
    /// The world of a seed, before anything happens.
    pub fn new(seed: u64, plant: Option<Plant>) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random).with_drafter(seed);
        let start = Instant::now();
        let kinds = scenario.machines.iter().enumerate();
        let machines: Vec<_> = kinds.map(|(number, kind)| Machine::new(number, kind.clone(), plant)).collect();
        let ids = |random: &mut Random, most| (0..most).map(|_| random.within(0..50) as u32).collect();
        let mut world = Self {
            coordinator: SimulatedCoordinator::new(start, scenario.mesh.clone()),
            beginnings: (0..3).map(|_| ids(&mut random, scenario.mesh.context)).collect(),
            to_ask: scenario.requests,
            story: Story::new(),
            agenda: Agenda::default(),
            connections: BTreeMap::new(),
            links: BTreeMap::new(),
            feeds: BTreeMap::new(),
            blocked: BTreeSet::new(),
            asked: BTreeMap::new(),
            drafter: scenario.mesh.drafter.map(|_| Drafter::new(seed)),
            now: Duration::ZERO,
            numbered: 0,
            calm: false,
            quiet: None,
            over: false,
            machines,
            scenario,
            random,
            plant,
            start,
        };
        world.begin();
        world
    }

    /// Lets everything happen, until nothing is left to happen or something was found.
    pub fn run(mut self) -> Story {
        while !self.over && !self.story.is_over() {
            let Some((at, happening)) = self.agenda.pop() else { break };
            self.now = at;
            self.story.at(at);
            self.happen(happening);
            self.read_books();
        }
        let draft_model = self.coordinator.status(self.instant()).draft_model;
        self.story.totals.drafted = draft_model.map_or(0, |model| model.accepted_tokens);
        self.story.end(self.now);
        self.story
    }

    fn begin(&mut self) {
        let mesh = &self.scenario.mesh;
        self.story.tell(format!(
            "a model of {} layers, context {}, {} KV positions, steps of {} rows, {:?}, {:?} prefixes, {:?} drafts",
            mesh.spec.layers.len(),
            mesh.context,
            mesh.kv_positions,
            mesh.chunk_rows,
            mesh.formation.workers,
            mesh.prefix_reuse,
            mesh.speculation
        ));
        for number in 0..self.machines.len() {
            let kind = &self.machines[number].kind;
            let faulty = self.scenario.faulty.filter(|faulty| faulty.machine == number);
            self.story.tell(format!(
                "machine m{number} has {} MiB and {} threads, and takes {:.2} times as long as it might{}",
                kind.memory_bytes >> 20,
                kind.threads,
                kind.slowness,
                faulty.map(|faulty| format!("; it sends {:?}", faulty.sends)).unwrap_or_default()
            ));
            let at = self.random.millis(0..3000);
            self.agenda.enter(at, Happening::Starts { machine: number });
        }
        let first = self.random.millis(1000..8000);
        self.agenda.enter(Duration::ZERO, Happening::CoordinatorTick);
        self.agenda.enter(first, Happening::Request);
        self.agenda.enter(self.scenario.calm_at, Happening::Calm);
        self.mishap_later();
        self.drafter_starts();
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::CoordinatorTick => self.coordinator_tick(),
            Happening::Request => self.request(),
            Happening::Cancel(session) => self.cancel(session),
            Happening::Mishap => self.mishap(),
            Happening::Calm => self.calm(),
            Happening::Joins { connection } => self.joins(connection),
            Happening::ToCoordinator { connection, message } => self.coordinator_hears(connection, message),
            Happening::CoordinatorLoses { connection } => self.coordinator_loses(connection),
            Happening::FromPipeline { link, frame } => self.frame_from_pipeline(link, &frame),
            Happening::FeedBreaks { link } => self.feed_breaks(link),
            Happening::AtWorker { machine, process, what } => self.at_worker(machine, process, what),
            Happening::Starts { machine } => self.starts(machine),
            Happening::Drafted(answer) => self.drafted(answer),
            Happening::DrafterEnds => self.drafter_ends(),
        }
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// A number that nothing else has.
    fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }

    fn delay(&mut self) -> Duration {
        self.random.millis(self.scenario.delay_ms.clone())
    }

    fn find(&mut self, text: String) {
        self.story.find(text);
    }

    /// What would be a finding in an honest world may happen where a worker sends frames twice.
    fn find_if_honest(&mut self, text: String) {
        if !self.has_refused_frames() {
            self.find(text);
        }
    }

    /// Whether a worker sends what must be refused.
    fn has_refused_frames(&self) -> bool {
        self.scenario.faulty.is_some_and(|faulty| faulty.sends == Nonsense::FramesTwice)
    }

    fn read_books(&mut self) {
        for number in 0..self.machines.len() {
            for text in self.machines[number].books.take_findings() {
                self.find(format!("the books of m{number}: {text}"));
            }
        }
    }

    fn machine_of(&self, peer: PeerId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.peer == peer)
    }
}
