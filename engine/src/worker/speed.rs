//! What a worker answers when it is asked how fast it is.

use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprints, ShardDemand},
    spec::ModelSpec,
};
use qmesh_net::{Probe, Probed, ProbedPoint};

use super::memory::Allowance;
use crate::{
    backend::Backend,
    probe::{ProbePoint, probe},
};

/// Computes what was asked for, or says why not.
pub(super) fn probed(backend: &dyn Backend, memory: Option<ByteCount>, asked: &Probe) -> Probed {
    match measure(backend, memory, asked) {
        Ok(points) => Probed { points: points.into_iter().map(point).collect(), text: String::new() },
        Err(text) => Probed { points: Vec::new(), text },
    }
}

fn measure(backend: &dyn Backend, memory: Option<ByteCount>, asked: &Probe) -> Result<Vec<ProbePoint>, String> {
    let excerpt: ModelSpec = serde_json::from_slice(&asked.spec_json).map_err(|error| error.to_string())?;
    if excerpt.layers.is_empty() {
        return Err("a model without layers".to_owned());
    }
    let demand = ShardDemand {
        layers: 0..excerpt.layers.len(),
        kv_positions: PROBED_ROWS,
        context: PROBED_ROWS,
        chunk_rows: PROBED_ROWS,
        threads: backend.threads().get(),
    };
    let (needed, free) = (Footprints::new(&excerpt).shard(&demand).total_bytes(), Allowance::measure(memory).bytes.0);
    if needed > free {
        return Err("there is no room to measure in".to_owned());
    }
    probe(backend, &excerpt).map_err(|error| error.to_string())
}

fn point(point: ProbePoint) -> ProbedPoint {
    let ProbePoint { rows, layers_ps_per_byte, head_ps_per_byte } = point;
    // Conversions stop at the ends of what the integers hold.
    let per_kib = |ps_per_byte: f64| (ps_per_byte * 1024.0).round() as u64;
    ProbedPoint {
        rows: u32::try_from(rows).unwrap_or(u32::MAX),
        layers_ps_per_kib: per_kib(layers_ps_per_byte),
        head_ps_per_kib: per_kib(head_ps_per_byte),
    }
}

/// Rows of the largest step that is measured.
const PROBED_ROWS: usize = 256;
