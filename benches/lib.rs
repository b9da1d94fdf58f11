//! What the benchmarks share: shards of models, loaded from their files.

use std::path::Path;

use qmesh_engine::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{Shard, TensorSource},
    step::{SequenceRows, Step, Wants},
};
use qmesh_models::{spec::TensorSpec, weights::ModelFile};

/// Reads tensors straight from the model's file.
struct FromFile(ModelFile);

impl TensorSource for FromFile {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        let read = self.0.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    }
}

/// The whole model at `path` as one shard with room for `positions`, and session 1 open.
///
/// # Panics
/// When the model cannot be loaded: a benchmark of nothing is worth nothing.
pub fn whole_model(path: &Path, positions: usize, threads: usize) -> Shard {
    let source = FromFile(ModelFile::open(path).unwrap_or_else(|e| panic!("{e}")));
    let spec = source.0.spec().clone();
    let layers = 0..spec.layers.len();
    let shard = Shard::load(&spec, layers, positions, threads, &source, &mut |_| {});
    let mut shard = shard.unwrap_or_else(|e| panic!("{e}"));
    shard.open(1, positions, SamplingParameters::default()).unwrap_or_else(|e| panic!("{e}"));
    shard
}

/// A step of `rows` ids of session 1 from `position` on, the last one sampled.
pub fn step(position: usize, rows: usize) -> Step {
    let sequences = vec![SequenceRows { session: 1, position, rows, wants: Wants::Last }];
    let ids = (0..rows).map(|i| (i % 100) as u32).collect();
    Step { sequences, ids, hidden: None }
}
