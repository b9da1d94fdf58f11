//! `draft`: a small model that says to a coordinator what may follow, which links nothing that computes.

use std::{
    io::{self, stdin, stdout},
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use qmesh_engine::{
    backend::{Backend as _, ExpertsHeld, HeldTensors, ShardRequest, cpu::CpuBackend},
    error::EngineError,
    worker::{DraftingModel, DraftingRoom, draft},
};
use qmesh_models::{
    spec::{ModelSpec, TensorSpec},
    weights::ModelFile,
};

use super::join::physical_cores;

/// Arguments of `draft`.
#[derive(clap::Args)]
pub(super) struct DraftArgs {
    /// The model's file
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Compute threads [default: physical cores]
    #[arg(short, long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// Positions of one session
    #[arg(long, value_name = "COUNT")]
    context: NonZeroUsize,
    /// Positions of all sessions together
    #[arg(long, value_name = "COUNT")]
    kv_positions: NonZeroUsize,
}

/// Loads the model, and drafts until standard input ends.
pub(super) fn run(args: &DraftArgs) -> Result<ExitCode> {
    let file = ModelFile::open(&args.model)?;
    let (context, kv_positions) = (args.context.get(), args.kv_positions.get());
    // What depends on a model's context depends on that of its sessions.
    let spec = ModelSpec { context, ..file.spec().clone() };
    let read = |tensor: &TensorSpec, into: &mut [u8]| {
        let read = file.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    };
    let request = ShardRequest {
        spec: &spec,
        layers: 0..spec.layers.len(),
        kv_positions,
        held: &HeldTensors::new(),
        read: &read,
        experts: ExpertsHeld::All,
    };
    let backend = CpuBackend::new(args.threads.unwrap_or_else(physical_cores));
    let shard = backend.load(&request, &mut |_| {}).with_context(|| args.model.display().to_string())?;
    let mut model = DraftingModel::new(shard, DraftingRoom { vocab: spec.vocab, context, kv_positions });
    match draft(&mut model, stdin(), stdout().lock()) {
        // Whoever wanted the drafts is gone.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        ended => ended.map(|()| ExitCode::SUCCESS).context("drafting"),
    }
}
