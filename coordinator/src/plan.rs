//! Who holds which layers: a pure planner. Sizes in, layer ranges out; no socket, no clock.
//!
//! Workers keep the order they are given in. Among all cuts under the memory limits it takes the one whose slowest
//! stage is fastest, then the one with the least work in all (`solver`); what a stage's work is, is in `cost`, and what it
//! takes of memory in `qmesh_models::footprint`, which the workers ask as well.

pub mod cluster;
mod cost;
mod error;
pub mod machine;
mod solver;

use std::ops::Range;

use qmesh_models::{footprint::Footprint, spec::ModelSpec};
use serde::Serialize;

pub use self::error::{PlanError, Shortfall};
use self::{cost::Costs, solver::Assignment};

/// What one worker offers.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Capacity {
    /// Its name in the mesh.
    pub name: String,
    /// Memory that its process may use.
    pub memory_bytes: u64,
    /// Threads that it computes with; 0 counts as 1.
    pub threads: u32,
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

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The whole model.
    pub spec: &'a ModelSpec,
    /// Who could hold layers, in pipeline order.
    pub workers: Vec<Capacity>,
    /// KV positions of all sessions together that every stage must hold.
    pub kv_positions: usize,
    /// The most positions of one session.
    pub context: usize,
    /// The most rows of one step.
    pub chunk_rows: usize,
    /// Explicit boundaries: `[5, 17]` is layers 0..5, 5..17 and 17 to the end, on the first three workers.
    pub cut: Option<Vec<usize>>,
    /// What the planner's choice shall be good for.
    pub workload: Workload,
}

/// Who holds which layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// In pipeline order; their layers are contiguous and cover the model.
    pub stages: Vec<StagePlan>,
    /// What a person should know: workers left out, for example.
    pub notes: Vec<String>,
}

/// One stage's worker, layers and memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StagePlan {
    /// Index into `PlanInput::workers`.
    pub worker: usize,
    /// Layers of the shard.
    pub layers: Range<usize>,
    /// Bytes of the shard's tensors, embedding and head included.
    pub weight_bytes: u64,
    /// Bytes of `kv_positions` in these layers, in whole pages.
    pub kv_bytes: u64,
    /// Activations, logits, frames that wait, and what threads work in.
    pub buffer_bytes: u64,
    /// The worker's process itself.
    pub process_bytes: u64,
    /// The four together: what the worker's process has resident at most.
    pub memory_bytes: u64,
    /// What the worker's limit leaves.
    pub headroom_bytes: u64,
}

/// Cuts the model over the workers. Every worker gets a layer where that is possible; `Plan::notes` names the others.
///
/// # Errors
/// `PlanError::DoesNotFit` (with what would), `CutDoesNotFit`, `BadCut`, `NoWorkers`.
pub fn solve(input: &PlanInput<'_>) -> Result<Plan, PlanError> {
    if input.workers.is_empty() {
        return Err(PlanError::NoWorkers);
    }
    let costs = Costs::new(input);
    let assignments = match &input.cut {
        Some(cut) => explicit(input, &costs, cut)?,
        None => solver::assign(&costs, &input.workers).ok_or_else(|| error::does_not_fit(input, &costs))?,
    };
    let notes = notes(input, &assignments);
    Ok(Plan { stages: assignments.into_iter().map(|a| stage(input, &costs, a)).collect(), notes })
}

/// Whether the workers have room for the model: `solve` without saying what is missing.
pub fn fits(input: &PlanInput<'_>) -> bool {
    let costs = Costs::new(input);
    match &input.cut {
        Some(cut) => explicit(input, &costs, cut).is_ok(),
        None => solver::assign(&costs, &input.workers).is_some(),
    }
}

/// The time of a plan's slowest stage, in bytes of weights per thread: only good to compare plans of one model.
pub fn slowest_stage(input: &PlanInput<'_>, plan: &Plan) -> u64 {
    let costs = Costs::new(input);
    let time =
        |stage: &StagePlan| costs.work_bytes(&stage.layers) / u64::from(input.workers[stage.worker].threads.max(1));
    plan.stages.iter().map(time).max().unwrap_or(0)
}

fn stage(input: &PlanInput<'_>, costs: &Costs<'_>, assignment: Assignment) -> StagePlan {
    let Assignment { worker, layers } = assignment;
    let Capacity { memory_bytes, threads, .. } = input.workers[worker];
    let footprint = costs.footprint(&layers, threads);
    let Footprint { weight_bytes, kv_bytes, buffer_bytes, process_bytes } = footprint;
    StagePlan {
        worker,
        layers,
        weight_bytes,
        kv_bytes,
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
    let stages = bounds.len() - 1;
    if stages > input.workers.len() {
        return Err(PlanError::CutNeedsWorkers { stages, workers: input.workers.len() });
    }
    let assignments: Vec<_> =
        bounds.windows(2).enumerate().map(|(worker, b)| Assignment { worker, layers: b[0]..b[1] }).collect();
    for Assignment { worker, layers } in &assignments {
        let Capacity { name, memory_bytes, threads } = &input.workers[*worker];
        let needed_bytes = costs.footprint(layers, *threads).total_bytes();
        if needed_bytes > *memory_bytes {
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

fn notes(input: &PlanInput<'_>, assignments: &[Assignment]) -> Vec<String> {
    let unused: Vec<&str> = (0..input.workers.len())
        .filter(|worker| assignments.iter().all(|a| a.worker != *worker))
        .map(|worker| input.workers[worker].name.as_str())
        .collect();
    if unused.is_empty() {
        return Vec::new();
    }
    let layers = input.spec.layers.len();
    let why = if input.cut.is_some() {
        format!("the cut has {} stages", assignments.len())
    } else if assignments.len() == layers {
        format!("the model has only {layers} layers")
    } else {
        "not every worker has room for a layer".to_owned()
    };
    vec![format!("{why}: nothing to do for {}", unused.join(", "))]
}

#[cfg(test)]
mod tests;
