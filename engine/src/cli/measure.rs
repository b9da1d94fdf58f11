//! `measure`: how fast this machine is, for the planner, which links nothing that computes.

use std::{io, num::NonZeroUsize, process::ExitCode};

use anyhow::{Context, Result, ensure};
use qmesh_engine::{backend::cpu::CpuBackend, measure};
use qmesh_models::spec::ModelSpec;

use super::{join::physical_cores, report::print_json};

/// Arguments of `measure`.
#[derive(clap::Args)]
pub(super) struct MeasureArgs {
    /// Compute threads [default: physical cores]
    #[arg(short, long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
}

/// Measures, and prints one JSON array.
pub(super) fn run(args: &MeasureArgs) -> Result<ExitCode> {
    let excerpt: ModelSpec = serde_json::from_reader(io::stdin().lock()).context("no spec on standard input")?;
    ensure!(!excerpt.layers.is_empty(), "a model without layers");
    let times = measure::measure(&CpuBackend::new(args.threads.unwrap_or_else(physical_cores)), &excerpt)?;
    print_json(&serde_json::to_value(&times)?)?;
    Ok(ExitCode::SUCCESS)
}
