//! What a world is made of: drawn from its seed, before anything happens.

use std::{num::NonZeroUsize, ops::Range, time::Duration};

use qmesh_coordinator::{
    mesh::{Formation, PrefixReuse, Speculation, Workers, simulation::SimulatedMesh},
    plan::{self, Capacity, PlanInput, Workload},
};
use qmesh_models::footprint::{Footprints, ShardDemand};

use crate::{model, random::Random};

/// One world's circumstances.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The mesh that the coordinator serves.
    pub mesh: SimulatedMesh,
    /// Its machines, each with a worker.
    pub machines: Vec<MachineKind>,
    /// One-way delay of a connection, in milliseconds.
    pub delay_ms: Range<u64>,
    /// Time of a step, without its rows.
    pub step: Duration,
    /// Time of each of its rows.
    pub row: Duration,
    /// Requests that come in all.
    pub requests: usize,
    /// Time between two requests, in milliseconds.
    pub request_gap_ms: Range<u64>,
    /// Time between two mishaps, in milliseconds.
    pub mishap_gap_ms: Range<u64>,
    /// Until when things go wrong.
    pub calm_at: Duration,
    /// Whether one machine's worker sends what it should not.
    pub faulty: Option<Faulty>,
    /// Of a hundred fetches, those that fail.
    pub fetches_fail: u64,
}

/// A worker that sends what it should not, now and then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Faulty {
    /// Whose.
    pub machine: usize,
    /// What it sends.
    pub sends: Nonsense,
}

/// What a faulty worker sends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nonsense {
    /// A frame twice: the second one is refused, and the pipeline may be given up for it.
    FramesTwice,
    /// A frame of an old plan before one of the present plan: it changes nothing at all.
    OldFrames,
}

/// A machine.
#[derive(Clone, Debug)]
pub struct MachineKind {
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// Threads that it computes with.
    pub threads: NonZeroUsize,
    /// What its times are multiplied with.
    pub slowness: f64,
}

impl Scenario {
    /// Draws one.
    pub fn new(random: &mut Random) -> Self {
        let layers = random.within(2..9) as usize;
        let count = random.within(1..6) as usize;
        let context = 64 * random.within(2..5) as usize;
        let kv_positions = context + 64 * random.within(0..8) as usize;
        let chunk_rows = [8, 16, 48][random.within(0..3) as usize];
        let wanted = random.within(1..count as u64 + 1) as usize;
        let workers = [Workers::WhenItFits, Workers::AtLeast(wanted), Workers::Exactly(wanted)];
        let workers = workers[random.within(0..3) as usize];
        let workload = [Workload::Mixed, Workload::Prompts, Workload::Replies][random.within(0..3) as usize];
        let spec = model::spec(layers);
        let hashes = (0..spec.tensors.len()).map(|number| [number as u8; 32]).collect();
        let mesh = SimulatedMesh {
            spec,
            hashes,
            context,
            kv_positions,
            chunk_rows,
            waiting: 16,
            resume: Duration::from_secs(60),
            formation: Formation { workload, ..Formation::new(workers) },
            prefix_reuse: if random.percent(75) { PrefixReuse::On } else { PrefixReuse::Off },
            speculation: if random.percent(75) { Speculation::On } else { Speculation::Off },
            drafter: None,
        };
        let shortest = random.within(0..20);
        let sends = if shortest.is_multiple_of(2) { Nonsense::FramesTwice } else { Nonsense::OldFrames };
        let is_faulty = count > 1 && random.percent(15);
        let faulty = is_faulty.then(|| Faulty { machine: random.within(0..count as u64) as usize, sends });
        let calm = random.percent(10);
        Self {
            machines: machines(random, &mesh, count),
            mesh,
            delay_ms: shortest..shortest + 1 + random.within(0..30),
            step: random.millis(1..8),
            row: random.millis(0..1),
            requests: random.within(4..16) as usize,
            request_gap_ms: 0..random.within(200..6000),
            mishap_gap_ms: if calm { 900_000..900_001 } else { 500..random.within(4000..20_000) },
            calm_at: Duration::from_secs(random.within(15..45)),
            faulty,
            fetches_fail: if random.percent(25) { 10 } else { 0 },
        }
    }

    /// The same with a model that drafts, in the worlds of some seeds: whatever else is drawn stays what it is.
    #[must_use]
    pub fn with_drafter(mut self, seed: u64) -> Self {
        if seed % DRAFTED_ONE_OF == DRAFTED {
            self.mesh.speculation = Speculation::On;
            self.mesh.drafter = Some(Random::new(!seed).within(DRAFTS) as usize);
        }
        self
    }
}

/// Which seeds' worlds have a model that drafts: one of so many.
const DRAFTED_ONE_OF: u64 = 4;
/// The rest that those seeds leave.
const DRAFTED: u64 = 2;
/// Tokens that such a model drafts at a time at most, and the fewest.
const DRAFTS: Range<u64> = 1..16;

/// Machines on which the model fits: if need be they get more memory than was drawn for them.
fn machines(random: &mut Random, mesh: &SimulatedMesh, count: usize) -> Vec<MachineKind> {
    let layers = mesh.spec.layers.len();
    let machine = |random: &mut Random| {
        let threads = NonZeroUsize::MIN.saturating_add(random.within(0..4) as usize);
        let room = random.within(1..layers as u64 + 1) as usize;
        let memory_bytes = footprint(mesh, room, threads) + (random.within(0..64) << 20);
        MachineKind { memory_bytes, threads, slowness: random.within(50..300) as f64 / 100.0 }
    };
    let mut machines: Vec<_> = (0..count).map(|_| machine(random)).collect();
    let (Workers::Exactly(enough) | Workers::AtLeast(enough)) = mesh.formation.workers else {
        while !fits(mesh, &machines) {
            machines.iter_mut().for_each(|machine| machine.memory_bytes += 32 << 20);
        }
        return machines;
    };
    // Whichever of them come, there must be enough room.
    loop {
        let mut by_memory = machines.clone();
        by_memory.sort_by_key(|machine| machine.memory_bytes);
        by_memory.truncate(enough);
        if fits(mesh, &by_memory) {
            return machines;
        }
        machines.iter_mut().for_each(|machine| machine.memory_bytes += 32 << 20);
    }
}

fn footprint(mesh: &SimulatedMesh, layers: usize, threads: NonZeroUsize) -> u64 {
    let SimulatedMesh { kv_positions, context, chunk_rows, ref spec, .. } = *mesh;
    let demand = ShardDemand {
        layers: 0..layers,
        kv_positions,
        context,
        chunk_rows,
        threads: threads.get(),
        experts_in_memory: None,
    };
    Footprints::new(spec).shard(&demand).total_bytes()
}

fn fits(mesh: &SimulatedMesh, machines: &[MachineKind]) -> bool {
    let capacity = |machine: &MachineKind| Capacity {
        name: String::new(),
        memory_bytes: machine.memory_bytes,
        threads: machine.threads.get() as u32,
        speed: None,
    };
    let workers = machines.iter().map(capacity).collect();
    let SimulatedMesh { kv_positions, context, chunk_rows, ref spec, .. } = *mesh;
    plan::fits(&PlanInput::new(spec, workers, kv_positions, context, chunk_rows))
}
