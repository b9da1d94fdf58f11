//! `measure`: how fast this machine is, for the planner, which links nothing that computes.

use std::{io, num::NonZeroUsize, process::ExitCode};

use anyhow::{Context, Result, ensure};
use qmesh_engine::{
    backend::cpu::CpuBackend,
    measure::{self, StepTime},
};
use qmesh_models::spec::ModelSpec;
use serde_json::json;

use super::join::physical_cores;

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
    let time = |time: &StepTime| {
        let StepTime { rows, layers_ps_per_byte, head_ps_per_byte } = time;
        json!({"rows": rows, "layers_ps_per_byte": layers_ps_per_byte, "head_ps_per_byte": head_ps_per_byte})
    };
    println!("{}", json!(times.iter().map(time).collect::<Vec<_>>()));
    Ok(ExitCode::SUCCESS)
}
