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
use qmesh_net::{AttentionTime, DiskRate, Measure, Measured, MeasuredPoint, Sections};
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
            measured.map_err(|error| error.to_string()).and_then(|found| found.map_err(|error| error.to_string()))
        }
    };
    match found {
        Ok(found) => Measured {
            sections: sections(&found),
            points: found.steps.into_iter().map(point).collect(),
            ..Measured::default()
        },
        Err(text) => Measured { text, ..Measured::default() },
    }
}

/// What is said of attention and of the disk, if anything.
fn sections(found: &MachineSpeed) -> Sections {
    let mut sections = Sections::default();
    let disk = found.disk_bytes_per_s.map(|bytes_per_s| DiskRate { bytes_per_s }.put(&mut sections));
    let attention = found.attention_ps_per_byte.map(per_kib);
    let attention = attention.map(|ps_per_kib| AttentionTime { ps_per_kib }.put(&mut sections));
    for error in [disk, attention].into_iter().flatten().filter_map(Result::err) {
        tracing::warn!(%error, "cannot say all that was measured");
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
        kv_positions: measure::POSITIONS,
        context: measure::POSITIONS,
        chunk_rows: measure::ROWS_MOST,
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
    MeasuredPoint {
        rows: u32::try_from(rows).unwrap_or(u32::MAX),
        layers_ps_per_kib: per_kib(layers_ps_per_byte),
        head_ps_per_kib: per_kib(head_ps_per_byte),
    }
}

/// The conversion stops at the ends of what the integer holds.
fn per_kib(ps_per_byte: f64) -> u64 {
    (ps_per_byte * 1024.0).round() as u64
}
