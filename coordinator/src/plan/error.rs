//! Why there is no plan, and what to do about it.

use std::{fmt, ops::Range};

use qmesh_models::bytes::ByteCount;

use super::{
    Capacity, Experts, PlanInput,
    cost::{Costs, TooLarge},
    feasible,
};

/// Why there is no plan.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Nobody to plan for.
    #[error("no workers to plan for")]
    NoWorkers,
    /// No cut fits the workers' memory.
    #[error("{0}")]
    DoesNotFit(Box<Shortfall>),
    /// The explicit cut gives a worker more than it can hold.
    #[error("the cut gives {worker} layers {}..{}, which need {}; it has {}", layers.start, layers.end,
        ByteCount(*needed_bytes), ByteCount(*memory_bytes))]
    CutDoesNotFit {
        /// Whose memory it is.
        worker: String,
        /// That it would hold.
        layers: Range<usize>,
        /// For weights, KV, buffers and the process.
        needed_bytes: u64,
        /// That the worker offers.
        memory_bytes: u64,
    },
    /// The explicit cut is none.
    #[error("cut {cut:?} must rise within 1..{layers}, the model's layers")]
    BadCut {
        /// As given.
        cut: Vec<usize>,
        /// Of the model.
        layers: usize,
    },
    /// The explicit cut parts a layer from an earlier one that it goes by, or whose keys and values it meets.
    #[error("no cut before layer {layer}: layers from there on need what an earlier one has made")]
    CutsOff {
        /// The layer.
        layer: usize,
    },
    /// The explicit cut has more stages than there are workers.
    #[error("the cut makes {stages} stages, there are {workers} workers")]
    CutNeedsWorkers {
        /// Boundaries and one.
        stages: usize,
        /// Given.
        workers: usize,
    },
    /// A worker is pinned to layers that it cannot have.
    #[error("{worker} is pinned to layers {}..{}: {reason}", layers.start, layers.end)]
    BadPin {
        /// Whose pin it is.
        worker: String,
        /// As given.
        layers: Range<usize>,
        /// What is wrong with it.
        reason: String,
    },
}

/// How much is missing, and what would do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shortfall {
    /// The model's name.
    pub model: String,
    /// Workers planned for.
    pub workers: usize,
    /// For the model, its KV and every worker's own needs.
    pub needed_bytes: u64,
    /// That the workers offer together.
    pub available_bytes: u64,
    /// Asked for.
    pub kv_positions: usize,
    /// The most KV positions that would fit these workers; 0 where the weights alone do not.
    pub fitting_kv_positions: usize,
    /// The same as the context of one session, with as many sessions as were asked for.
    pub fitting_context: usize,
    /// A further worker with this much memory would do.
    pub extra_worker_bytes: u64,
    /// Whether it would do that experts stay on disk.
    pub fits_on_disk: bool,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, workers, kv_positions, .. } = self;
        let (needed, available) = (ByteCount(self.needed_bytes), ByteCount(self.available_bytes));
        let plural = if *workers == 1 { "" } else { "s" };
        write!(f, "{model} with {kv_positions} KV positions needs {needed} on {workers} worker{plural}")?;
        if self.available_bytes < self.needed_bytes {
            write!(f, ", which offer{} {available}", if *workers == 1 { "s" } else { "" })
        } else {
            write!(f, "; they offer {available}, but no cut into whole layers fits")
        }
    }
}

impl PlanError {
    /// What the user can do, as one line without the word `try`.
    pub fn advice(&self) -> Option<String> {
        match self {
            Self::DoesNotFit(shortfall) => {
                let context = Some(shortfall.fitting_context).filter(|context| *context > 0);
                let context = context.map(|context| format!("--ctx-size {context} or less"));
                let disk = shortfall.fits_on_disk.then(|| "--experts-on-disk (slower)".to_owned());
                let worker = format!("add a worker with at least {}", ByteCount(shortfall.extra_worker_bytes));
                let ways: Vec<String> = context.into_iter().chain(disk).chain([worker]).collect();
                Some(ways.join(", or "))
            }
            Self::CutDoesNotFit { .. } => {
                Some("another --cut, or none: the planner looks for one that fits".to_owned())
            }
            Self::NoWorkers
            | Self::BadCut { .. }
            | Self::CutsOff { .. }
            | Self::CutNeedsWorkers { .. }
            | Self::BadPin { .. } => None,
        }
    }
}

/// Whether the pins can be kept.
pub(super) fn check_pins(input: &PlanInput<'_>, costs: &Costs<'_>) -> Result<(), PlanError> {
    let mut before: Option<&Range<usize>> = None;
    let mut pins: Vec<_> = input.pins.iter().collect();
    pins.sort_by_key(|(_, layers)| layers.start);
    for (&worker, layers) in pins {
        let Some(capacity) = input.workers.get(worker) else { continue };
        let bad = |reason| Err(PlanError::BadPin { worker: capacity.name.clone(), layers: layers.clone(), reason });
        if layers.is_empty() || layers.end > costs.layers() {
            return bad(format!("the model has layers 0..{}", costs.layers()));
        }
        if let Some(layer) = [layers.start, layers.end].into_iter().find(|layer| !input.spec.can_begin(*layer)) {
            return bad(format!("layers from {layer} on need what an earlier one has made"));
        }
        if let Some(before) = before.filter(|before| before.end > layers.start) {
            return bad(format!("another worker is pinned to {}..{}", before.start, before.end));
        }
        if let Err(TooLarge { needed_bytes }) = costs.share(layers.clone(), capacity) {
            return bad(format!("they need {}, it has {}", ByteCount(needed_bytes), ByteCount(capacity.memory_bytes)));
        }
        before = Some(layers);
    }
    Ok(())
}

pub(super) fn does_not_fit(input: &PlanInput<'_>, costs: &Costs<'_>) -> PlanError {
    let workers = &input.workers;
    let fits_positions = |positions: u64| {
        let positions = usize::try_from(positions).unwrap_or(usize::MAX);
        feasible(input, &costs.with_kv_positions(positions))
    };
    let with_extra = |memory_bytes: u64| {
        let mut helped = input.clone();
        helped.workers.push(Capacity { name: String::new(), memory_bytes, threads: 1, speed: None });
        feasible(&helped, costs)
    };
    let fitting_kv_positions = usize::try_from(last_true(input.kv_positions as u64, fits_positions)).unwrap_or(0);
    let whole = least_bytes(costs, 0..costs.layers(), 1);
    let too_few_megabytes = last_true(whole / MEGABYTE, |megabytes| !with_extra(megabytes * MEGABYTE));
    PlanError::DoesNotFit(Box::new(Shortfall {
        model: input.spec.name.clone(),
        workers: workers.len(),
        needed_bytes: needed_bytes(costs, workers),
        available_bytes: workers.iter().fold(0, |sum, w| sum.saturating_add(w.memory_bytes)),
        kv_positions: input.kv_positions,
        fitting_kv_positions,
        fitting_context: fitting_kv_positions / (input.kv_positions / input.context.max(1)).max(1),
        extra_worker_bytes: (too_few_megabytes + 1) * MEGABYTE,
        fits_on_disk: input.experts == Experts::InMemory && feasible(input, &costs.with_experts_on_disk()),
    }))
}

/// What a worker with so many threads needs at least for these layers.
fn least_bytes(costs: &Costs<'_>, layers: Range<usize>, threads: u32) -> u64 {
    let nothing = Capacity { name: String::new(), memory_bytes: 0, threads, speed: None };
    match costs.share(layers, &nothing) {
        Ok(_) => 0,
        Err(TooLarge { needed_bytes }) => needed_bytes,
    }
}

/// What all stages need together; hardly a function of the cut, so one layer each and the rest on the last will do.
fn needed_bytes(costs: &Costs<'_>, workers: &[Capacity]) -> u64 {
    let stages = workers.len().min(costs.layers());
    let needed = |(stage, worker): (usize, &Capacity)| {
        let layers = stage..if stage + 1 == stages { costs.layers() } else { stage + 1 };
        least_bytes(costs, layers, worker.threads)
    };
    workers[..stages].iter().enumerate().map(needed).fold(0, u64::saturating_add)
}

/// The last of `1..=most` for which `holds` does, where it holds up to some point and not beyond; 0 for none.
fn last_true(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if holds(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

const MEGABYTE: u64 = 1_000_000;
