//! `measure`: how fast this machine is, for the planner, which links nothing that computes.

use std::{io, num::NonZeroUsize, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use qmesh_doctor::disk;
use qmesh_engine::{
    backend::cpu::CpuBackend,
    measure::{self, MachineSpeed},
};
use qmesh_models::spec::{LayerSpec, ModelSpec};

use super::{join::physical_cores, report::print_json};

/// Arguments of `measure`.
#[derive(clap::Args)]
pub(super) struct MeasureArgs {
    /// Compute threads [default: physical cores]
    #[arg(short, long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// Where tensors are: how quickly that disk is read is measured for models of which a part may stay there
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
}

/// Measures, and prints one JSON object.
pub(super) fn run(args: &MeasureArgs) -> Result<ExitCode> {
    let excerpt: ModelSpec = serde_json::from_reader(io::stdin().lock()).context("no spec on standard input")?;
    ensure!(!excerpt.layers.is_empty(), "a model without layers");
    let threads = args.threads.unwrap_or_else(physical_cores);
    let found = measure::measure(&CpuBackend::new(threads), &excerpt)?;
    let has_experts = excerpt.layers.iter().any(|layer| LayerSpec::experts(layer).is_some());
    let cache = args.cache.as_ref().filter(|_| has_experts);
    // Where it cannot be found out, planners presume something.
    let disk_bytes_per_s = cache.and_then(|cache| disk::read_rate(cache, threads).ok()?);
    print_json(&serde_json::to_value(&MachineSpeed { disk_bytes_per_s, ..found })?)?;
    Ok(ExitCode::SUCCESS)
}
