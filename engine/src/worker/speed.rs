//! What a worker answers when it is asked how fast it is.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprints, ShardDemand},
    spec::ModelSpec,
};
use qmesh_net::{DiskRate, Measure, Measured, MeasuredPoint, Sections};
use tokio::{io::AsyncWriteExt, process::Command, task::spawn_blocking};

use super::{config::MeasuredBy, memory::Allowance};
use crate::{
    backend::Backend,
    measure::{self, MachineSpeed, StepTime},
};

/// Computes what was asked for, or says why not.
pub(super) async fn measured(
    backend: Arc<dyn Backend>,
    memory: Option<ByteCount>,
    (by, cache): (MeasuredBy, PathBuf),
    asked: Measure,
) -> Measured {
    let threads = backend.threads();
    let found = match (by, check(threads, memory, &asked)) {
        (_, Err(text)) => Err(text),
        (MeasuredBy::Program(program), Ok(_)) => in_a_process(&program, threads, &cache, &asked).await,
        (MeasuredBy::ThisProcess, Ok(excerpt)) => {
            let measured = spawn_blocking(move || measure::measure(&*backend, &excerpt)).await;
            let steps = measured.map_err(|error| error.to_string()).and_then(|steps| steps.map_err(|e| e.to_string()));
            steps.map(|steps| MachineSpeed { steps, disk_bytes_per_s: None })
        }
    };
    match found {
        Ok(MachineSpeed { steps, disk_bytes_per_s }) => Measured {
            points: steps.into_iter().map(point).collect(),
            sections: of_disk(disk_bytes_per_s),
            ..Measured::default()
        },
        Err(text) => Measured { text, ..Measured::default() },
    }
}

/// What is said of the disk, if anything.
fn of_disk(bytes_per_s: Option<u64>) -> Sections {
    let mut sections = Sections::default();
    if let Some(Err(error)) = bytes_per_s.map(|bytes_per_s| DiskRate { bytes_per_s }.put(&mut sections)) {
        tracing::warn!(%error, "cannot say how quickly the disk is read");
    }
    sections
}

/// The model to measure with, if there is room for it.
fn check(threads: NonZeroUsize, memory: Option<ByteCount>, asked: &Measure) -> Result<ModelSpec, String> {
    let excerpt: ModelSpec = serde_json::from_slice(&asked.spec_json).map_err(|error| error.to_string())?;
    if excerpt.layers.is_empty() {
        return Err("a model without layers".to_owned());
    }
    let demand = ShardDemand {
        layers: 0..excerpt.layers.len(),
        kv_positions: MEASURED_ROWS,
        context: MEASURED_ROWS,
        chunk_rows: MEASURED_ROWS,
        threads: threads.get(),
        experts_in_memory: None,
    };
    let (needed, free) = (Footprints::new(&excerpt).shard(&demand).total_bytes(), Allowance::measure(memory).bytes.0);
    if needed > free { Err("there is no room to measure in".to_owned()) } else { Ok(excerpt) }
}

/// What another process finds: all that it took of memory goes with it, and a worker's memory is promised to its shards.
async fn in_a_process(
    program: &Path,
    threads: NonZeroUsize,
    cache: &Path,
    asked: &Measure,
) -> Result<MachineSpeed, String> {
    let failed = |error: std::io::Error| format!("{} measure: {error}", program.display());
    let mut command = Command::new(program);
    command.args(["measure", "--threads", &threads.to_string(), "--cache"]).arg(cache).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // Where it has ended already, its own words say more than the broken pipe.
        let _written = stdin.write_all(&asked.spec_json).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

fn point(point: StepTime) -> MeasuredPoint {
    let StepTime { rows, layers_ps_per_byte, head_ps_per_byte } = point;
    // Conversions stop at the ends of what the integers hold.
    let per_kib = |ps_per_byte: f64| (ps_per_byte * 1024.0).round() as u64;
    MeasuredPoint {
        rows: u32::try_from(rows).unwrap_or(u32::MAX),
        layers_ps_per_kib: per_kib(layers_ps_per_byte),
        head_ps_per_kib: per_kib(head_ps_per_byte),
    }
}

/// Rows of the largest step that is measured.
const MEASURED_ROWS: usize = 256;
