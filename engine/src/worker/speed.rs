//! What a worker answers when it is asked how fast it is.

use qmesh_models::{
    bytes::ByteCount,
    footprint::{Footprints, ShardDemand},
    spec::ModelSpec,
};
use qmesh_net::{Measure, Measured, MeasuredPoint};

use super::memory::Allowance;
use crate::{
    backend::Backend,
    measure::{self, StepTime},
};

/// Computes what was asked for, or says why not.
pub(super) fn measured(backend: &dyn Backend, memory: Option<ByteCount>, asked: &Measure) -> Measured {
    match answer(backend, memory, asked) {
        Ok(points) => Measured { points: points.into_iter().map(point).collect(), text: String::new() },
        Err(text) => Measured { points: Vec::new(), text },
    }
}

fn answer(backend: &dyn Backend, memory: Option<ByteCount>, asked: &Measure) -> Result<Vec<StepTime>, String> {
    let excerpt: ModelSpec = serde_json::from_slice(&asked.spec_json).map_err(|error| error.to_string())?;
    if excerpt.layers.is_empty() {
        return Err("a model without layers".to_owned());
    }
    let demand = ShardDemand {
        layers: 0..excerpt.layers.len(),
        kv_positions: MEASURED_ROWS,
        context: MEASURED_ROWS,
        chunk_rows: MEASURED_ROWS,
        threads: backend.threads().get(),
    };
    let (needed, free) = (Footprints::new(&excerpt).shard(&demand).total_bytes(), Allowance::measure(memory).bytes.0);
    if needed > free {
        return Err("there is no room to measure in".to_owned());
    }
    measure::measure(backend, &excerpt).map_err(|error| error.to_string())
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
