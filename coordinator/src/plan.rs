//! Who holds which layers: a pure planner. Sizes, speeds and links in, layer ranges and times out; no socket, no clock.
//!
//! Any of the workers may be used, in any order. Among all deals under the memory limits `solver` takes the best one for the
//! [`Goal`]; what a stage's time is, is in `cost`, what it takes of memory in `qmesh_models::footprint`, which the workers ask
//! as well, and what the whole will do in `prediction`.

pub mod alternatives;
pub(crate) mod chunk;
pub mod cluster;
mod cost;
mod cpus;
pub mod curve;
pub mod drafted;
mod error;
mod link;
pub mod machine;
pub mod offer;
pub mod prediction;
pub mod quantisations;
mod solver;
mod speed;

use std::{collections::BTreeMap, num::NonZeroUsize, ops::Range};

use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprint, Footprints, sessions},
    spec::ModelSpec,
};
use serde::Serialize;

use self::{
    cost::{Costs, Share, TooLarge},
    solver::{Place, Problem},
};
pub use self::{
    error::{PlanError, Shortfall},
    link::{End, Link, Links},
    speed::{Speed, SpeedPoint, SpeedSource, even_out},
};

/// What one worker offers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Its name in the mesh.
    pub name: String,
    /// Memory that its process may use.
    pub memory_bytes: u64,
    /// Threads that it computes with; 0 counts as 1.
    pub threads: u32,
    /// How fast it computes this model, where that is known.
    pub speed: Option<Speed>,
}

/// What a plan shall be best at.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// One stream's tokens come as quickly as they can.
    Latency,
    /// All streams together get as many tokens as they can.
    Throughput,
    /// As many tokens as they can, where one stream's come at most a twentieth later than at best.
    #[default]
    Balanced,
}

/// What the stages shall be equally busy with: prompts pass the layers alone, generated tokens the head as well, so that no
/// cut is the best for both.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Some of both.
    #[default]
    Mixed,
    /// Long prompts, short answers.
    Prompts,
    /// Short prompts, long answers.
    Replies,
}

/// Whether experts must be in memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Experts {
    /// All of them.
    #[default]
    InMemory,
    /// Those for which a worker has no room stay on its disk, and are read when rows need them.
    OnDisk,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The whole model.
    pub spec: &'a ModelSpec,
    /// Who could hold layers.
    pub workers: Vec<Capacity>,
    /// How rows get from one to the next.
    pub links: Links,
    /// KV positions of all sessions together that every stage must hold.
    pub kv_positions: usize,
    /// The most positions of one session.
    pub context: usize,
    /// The most rows of one step.
    pub chunk_rows: usize,
    /// Explicit boundaries: `[5, 17]` is layers 0..5, 5..17 and 17 to the end, on the first three workers.
    pub cut: Option<Vec<usize>>,
    /// Workers that hold exactly these layers, by their index.
    pub pins: BTreeMap<usize, Range<usize>>,
    /// Stages that there shall be, if there is a plan with so many.
    pub stages_least: usize,
    /// What the plan shall be best at.
    pub goal: Goal,
    /// What there will be most of.
    pub workload: Workload,
    /// Whether experts may stay on disk.
    pub experts: Experts,
}

/// Who holds which layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// In pipeline order; their layers are contiguous and cover the model.
    pub stages: Vec<StagePlan>,
    /// What a person should know: workers left out, for example.
    pub notes: Vec<String>,
    /// By how much, in percent, a plan could be faster at most that the search did not find; 0 where this is the best.
    pub gap_percent: f64,
}

/// One stage's worker, layers and memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StagePlan {
    /// Index into `PlanInput::workers`.
    pub worker: usize,
    /// Layers of the shard.
    pub layers: Range<usize>,
    /// Bytes of the shard's tensors that are in memory, embedding and head included.
    pub weight_bytes: u64,
    /// How many of each layer's experts are in memory at a time, where the others are read from disk.
    pub experts_in_memory: Option<NonZeroUsize>,
    /// Bytes of experts for which there is no room in memory.
    pub disk_bytes: u64,
    /// Bytes of `kv_positions` in these layers, in whole pages.
    pub kv_bytes: u64,
    /// States of all sessions, in layers that have some.
    pub state_bytes: u64,
    /// Activations, logits, frames that wait, and what threads work in.
    pub buffer_bytes: u64,
    /// The worker's process itself.
    pub process_bytes: u64,
    /// The five together: what the worker's process has resident at most.
    pub memory_bytes: u64,
    /// What the worker's limit leaves.
    pub headroom_bytes: u64,
}

/// Layers for one worker, an index into the workers given.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Assignment {
    worker: usize,
    layers: Range<usize>,
}

impl<'a> PlanInput<'a> {
    /// A plan's input without links, pins or a cut, for any number of stages.
    pub fn new(
        spec: &'a ModelSpec,
        workers: Vec<Capacity>,
        kv_positions: usize,
        context: usize,
        chunk_rows: usize,
    ) -> Self {
        Self {
            spec,
            workers,
            links: Links::default(),
            kv_positions,
            context,
            chunk_rows,
            cut: None,
            pins: BTreeMap::new(),
            stages_least: 0,
            goal: Goal::default(),
            workload: Workload::default(),
            experts: Experts::default(),
        }
    }

    /// How fast a worker is, or is presumed to be.
    fn speed(&self, worker: usize) -> Speed {
        let Capacity { speed, threads, .. } = &self.workers[worker];
        speed.clone().unwrap_or_else(|| Speed::presumed(*threads))
    }

    /// Whether anything is known of how fast anybody is.
    fn is_timed(&self) -> bool {
        self.workers.iter().any(|worker| worker.speed.is_some())
    }

    /// Picoseconds for a row to get from one end to another; `None` where there is no way. Without any times there is
    /// nothing to weigh it against.
    fn hop_ps(&self, from: End, to: End) -> Option<u64> {
        let row_bytes = match (from, to) {
            // Ids, and tokens.
            (End::Coordinator, _) | (_, End::Coordinator) => 0.0,
            // The widest that a row can be between workers: which cut it will be is not known yet.
            (End::Worker(_), End::Worker(_)) => (size_of::<f32>() * self.spec.row_width(1)) as f64,
        };
        let link = self.links.between(from, to)?;
        Some(if self.is_timed() { prediction::hop_ps(link, row_bytes).round() as u64 } else { 0 })
    }
}

/// Deals the layers to the workers. `Plan::notes` names those who get none.
///
/// # Errors
/// `PlanError::DoesNotFit` (with what would), `CutDoesNotFit`, `BadCut`, `BadPin`, `NoWorkers`.
pub fn solve(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    if input.workers.is_empty() {
        return Err(PlanError::NoWorkers);
    }
    let costs = Costs::new(input);
    error::check_pins(input, &costs)?;
    let (assignments, gap_percent) = match &input.cut {
        Some(cut) => (explicit(input, &costs, cut)?, 0.0),
        None => assign(input, &costs).ok_or_else(|| error::does_not_fit(input, &costs))?,
    };
    let mut notes = notes(input, &costs, &assignments);
    let stages: Vec<_> = assignments.into_iter().map(|a| stage(input, &costs, a)).collect();
    notes.extend(on_disk(input, &costs, &stages));
    Ok(Plan { stages, notes, gap_percent })
}

/// Whether the workers have room for the model: `solve` without saying what is missing.
pub fn fits(input: &PlanInput<'_>) -> bool {
    let costs = Costs::new(input);
    match &input.cut {
        Some(cut) => explicit(input, &costs, cut).is_ok(),
        None => feasible(input, &costs),
    }
}

/// Whether there is any deal that fits.
fn feasible(input: &PlanInput<'_>, costs: &Costs<'_>) -> bool {
    problem(input, costs, &kinds(input)).best(Goal::Latency).is_some()
}

/// What the goal is to make small, in picoseconds: a token's time, or else that of the slowest stage. To compare plans of one
/// model.
pub fn cost(input: &PlanInput<'_>, plan: &Plan) -> u64 {
    let costs = Costs::new(input);
    let times = plan.stages.iter().map(|stage| costs.stage_time(&stage.share(), &input.speed(stage.worker)));
    if input.goal != Goal::Latency || !input.is_timed() {
        return times.map(|time| time.load).max().unwrap_or(0);
    }
    let workers = plan.stages.iter().map(|stage| End::Worker(stage.worker));
    let ends: Vec<End> = [End::Coordinator].into_iter().chain(workers).chain([End::Coordinator]).collect();
    let hops = ends.windows(2).map(|pair| input.hop_ps(pair[0], pair[1]).unwrap_or(u64::MAX));
    times.map(|time| time.token).chain(hops).fold(0, u64::saturating_add)
}

/// The best deal, and by how much it may miss the very best; `None` where nothing fits.
fn assign(input: &PlanInput<'_>, costs: &Costs<'_>) -> Option<(Vec<Assignment>, f64)> {
    let kinds = kinds(input);
    let mut problem = problem(input, costs, &kinds);
    // Where nobody knows how fast anybody is, all that can work do.
    let (least, goal) = match input.is_timed() {
        true => (input.stages_least, input.goal),
        false => (input.workers.len(), Goal::Throughput),
    };
    let deal = (0..=least.min(input.workers.len()).min(costs.layers())).rev().find_map(|stages| {
        problem.stages_least = stages;
        problem.best(goal)
    })?;
    let mut members: Vec<_> = kinds.iter().map(|kind| kind.iter()).collect();
    let assignments = deal
        .places
        .into_iter()
        .filter_map(|Place { kind, layers }| Some(Assignment { worker: *members[kind].next()?, layers }));
    Some((assignments.collect(), deal.gap_percent))
}

/// The workers by what they are: those that differ in nothing are one kind, in the order given.
fn kinds(input: &PlanInput<'_>) -> Vec<Vec<usize>> {
    let count = input.workers.len();
    let ends = || (0..count).map(End::Worker).chain([End::Coordinator]);
    let alike = |a: usize, b: usize| {
        let (one, other) = (&input.workers[a], &input.workers[b]);
        let same = (one.memory_bytes, one.threads, &one.speed) == (other.memory_bytes, other.threads, &other.speed);
        let [ea, eb] = [a, b].map(End::Worker);
        let others = || ends().filter(|end| *end != ea && *end != eb);
        same && !input.pins.contains_key(&a)
            && !input.pins.contains_key(&b)
            && input.links.between(ea, eb) == input.links.between(eb, ea)
            && others().all(|end| {
                input.links.between(ea, end) == input.links.between(eb, end)
                    && input.links.between(end, ea) == input.links.between(end, eb)
            })
    };
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for worker in 0..count {
        match kinds.iter_mut().find(|kind| kind.iter().all(|&member| alike(member, worker))) {
            Some(kind) => kind.push(worker),
            None => kinds.push(vec![worker]),
        }
    }
    kinds
}

fn problem(input: &PlanInput<'_>, costs: &Costs<'_>, kinds: &[Vec<usize>]) -> Problem {
    let layers = costs.layers();
    let stages = |kind: &Vec<usize>| {
        let worker = kind[0];
        let (capacity, speed) = (&input.workers[worker], input.speed(worker));
        let fitting = |start: usize| {
            let shares = (start + 1..=layers).map_while(|end| costs.share(start..end, capacity).ok());
            shares
                .map(|share| allowed(input, worker, &share.layers).then(|| costs.stage_time(&share, &speed)))
                .collect()
        };
        (0..layers).map(fitting).collect()
    };
    // Two members of a kind reach each other as the first two do.
    let ends: Vec<(End, End)> = kinds
        .iter()
        .map(|kind| (End::Worker(kind[0]), End::Worker(*kind.get(1).unwrap_or(&kind[0]))))
        .chain([(End::Coordinator, End::Coordinator)])
        .collect();
    let hop = |from: usize, to: usize| input.hop_ps(ends[from].0, if from == to { ends[to].1 } else { ends[to].0 });
    Problem {
        layers,
        stages: kinds.iter().map(stages).collect(),
        counts: kinds.iter().map(Vec::len).collect(),
        hops: (0..ends.len()).map(|from| (0..ends.len()).map(|to| hop(from, to)).collect()).collect(),
        stages_least: 0,
    }
}

/// Whether the model and the pins let a worker have these layers.
fn allowed(input: &PlanInput<'_>, worker: usize, layers: &Range<usize>) -> bool {
    let can_begin = input.spec.can_begin(layers.start);
    can_begin
        && input.pins.iter().all(|(&pinned, range)| {
            if pinned == worker { range == layers } else { range.end <= layers.start || layers.end <= range.start }
        })
}

fn stage(input: &PlanInput<'_>, costs: &Costs<'_>, assignment: Assignment) -> StagePlan {
    let Assignment { worker, layers } = assignment;
    let Capacity { memory_bytes, threads, .. } = input.workers[worker];
    // Only what fits is assigned.
    let all = Share { layers: layers.clone(), experts_in_memory: None };
    let share = costs.share(layers.clone(), &input.workers[worker]).unwrap_or_else(|_| all.clone());
    let footprint = costs.footprint(&share, threads);
    let Footprint { weight_bytes, kv_bytes, state_bytes, buffer_bytes, process_bytes } = footprint;
    StagePlan {
        worker,
        layers,
        experts_in_memory: share.experts_in_memory,
        disk_bytes: costs.footprint(&all, threads).weight_bytes.saturating_sub(weight_bytes),
        weight_bytes,
        kv_bytes,
        state_bytes,
        buffer_bytes,
        process_bytes,
        memory_bytes: footprint.total_bytes(),
        headroom_bytes: memory_bytes.saturating_sub(footprint.total_bytes()),
    }
}

fn explicit(input: &PlanInput<'_>, costs: &Costs<'_>, cut: &[usize]) -> Result<Vec<Assignment>, PlanError> {
    let layers = input.spec.layers.len();
    let bounds: Vec<usize> = [0].into_iter().chain(cut.iter().copied()).chain([layers]).collect();
    if !bounds.is_sorted_by(|a, b| a < b) {
        return Err(PlanError::BadCut { cut: cut.to_vec(), layers });
    }
    if let Some(layer) = cut.iter().copied().find(|layer| !input.spec.can_begin(*layer)) {
        return Err(PlanError::CutsOff { layer });
    }
    let stages = bounds.len() - 1;
    if stages > input.workers.len() {
        return Err(PlanError::CutNeedsWorkers { stages, workers: input.workers.len() });
    }
    let assignments: Vec<_> =
        bounds.windows(2).enumerate().map(|(worker, b)| Assignment { worker, layers: b[0]..b[1] }).collect();
    for Assignment { worker, layers } in &assignments {
        let capacity = &input.workers[*worker];
        if let Err(TooLarge { needed_bytes }) = costs.share(layers.clone(), capacity) {
            let Capacity { name, memory_bytes, .. } = capacity;
            return Err(PlanError::CutDoesNotFit {
                worker: name.clone(),
                layers: layers.clone(),
                needed_bytes,
                memory_bytes: *memory_bytes,
            });
        }
    }
    Ok(assignments)
}

fn notes(input: &PlanInput<'_>, costs: &Costs<'_>, assignments: &[Assignment]) -> Vec<String> {
    unused(input, costs, assignments).into_iter().chain(states(input)).collect()
}

impl StagePlan {
    /// What of the model the stage has, and where.
    fn share(&self) -> Share {
        Share { layers: self.layers.clone(), experts_in_memory: self.experts_in_memory }
    }
}

/// Experts that stay on disk, in one line.
fn on_disk(input: &PlanInput<'_>, costs: &Costs<'_>, stages: &[StagePlan]) -> Option<String> {
    let bytes: u64 = stages.iter().map(|stage| stage.disk_bytes).sum();
    let all: u64 = stages.iter().map(|stage| costs.routed_bytes(&stage.layers)).sum();
    (bytes > 0).then(|| {
        let of = |stage: &StagePlan| {
            let name = &input.workers[stage.worker].name;
            Some(format!("{} of {} a layer on {name}", stage.experts_in_memory?, costs.experts()))
        };
        let in_memory: Vec<String> = stages.iter().filter_map(of).collect();
        format!(
            "{:.0} % of the experts stay on disk and are read when they are needed (in memory: {}); with {} more memory none \
             would",
            100.0 * bytes as f64 / all.max(1) as f64,
            in_memory.join(", "),
            ByteCount(bytes)
        )
    })
}

/// What layers with states mean for whoever runs them.
fn states(input: &PlanInput<'_>) -> Option<String> {
    let PlanInput { spec, kv_positions, context, .. } = input;
    let bytes = Footprints::new(spec).session_bytes(&(0..spec.layers.len()));
    let sessions = sessions(*kv_positions, *context);
    spec.has_states().then(|| {
        format!(
            "layers hold {} of each session, however long it is: room for {sessions} at a time, and none begins with what \
             another one has left",
            ByteCount(bytes)
        )
    })
}

/// Workers that get no layers, and why.
fn unused(input: &PlanInput<'_>, costs: &Costs<'_>, assignments: &[Assignment]) -> Option<String> {
    let unused: Vec<usize> =
        (0..input.workers.len()).filter(|worker| assignments.iter().all(|a| a.worker != *worker)).collect();
    if unused.is_empty() {
        return None;
    }
    let layers = costs.layers();
    let has_room =
        |worker: &usize| (0..layers).any(|layer| costs.share(layer..layer + 1, &input.workers[*worker]).is_ok());
    let why = if input.cut.is_some() {
        format!("the cut has {} stages", assignments.len())
    } else if assignments.len() == layers {
        format!("the model has only {layers} layers")
    } else if input.is_timed() && unused.iter().all(has_room) {
        "more workers would make nothing faster".to_owned()
    } else {
        "not every worker has room for a layer".to_owned()
    };
    let names: Vec<&str> = unused.iter().map(|&worker| input.workers[worker].name.as_str()).collect();
    Some(format!("{why}: nothing to do for {}", names.join(", ")))
}

#[cfg(test)]
mod tests;
