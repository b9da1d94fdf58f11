//! Computes a few tokens of a model in one process: two shards, one behind the other, without a network.
//!
//! cargo run -p qmesh-engine --example generate -- tests/golden/tiny/llama.gguf

use std::{error::Error, path::PathBuf};

use qmesh_engine::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{Shard, TensorSource},
    step::{SequenceRows, Step, StepOutput, Wants},
};
use qmesh_models::{spec::TensorSpec, weights::ModelFile};

/// Where the weights come from; a worker of a mesh would fetch them from its coordinator.
struct Weights(ModelFile);

impl TensorSource for Weights {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        let read = self.0.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    }
}

/// Tokens to generate, and positions of a session, which are reserved when it is opened.
const TOKENS: usize = 8;
const POSITIONS: usize = 64;
/// A session is known by its number.
const SESSION: u64 = 1;

#[allow(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("give the path of a GGUF file")?;
    let weights = Weights(ModelFile::open(&path)?);
    let spec = weights.0.spec();
    // Wherever the model is cut, the tokens are the same.
    let (middle, end) = (spec.layers.len() / 2, spec.layers.len());
    let mut shards = Vec::new();
    for layers in [0..middle, middle..end].into_iter().filter(|layers| !layers.is_empty()) {
        let mut shard = Shard::load(&spec.shard(layers.clone()), layers, POSITIONS, 1, &weights, &mut |_| {})?;
        shard.open(SESSION, POSITIONS, SamplingParameters::default())?;
        shards.push(shard);
    }
    let mut ids = vec![1, 2, 3];
    let mut position = 0;
    for _ in 0..TOKENS {
        let new = ids[position..].to_vec();
        let rows = new.len();
        let token = pass(&mut shards, position, new)?.ok_or("the last shard has no head")?;
        position += rows;
        ids.push(token);
    }
    println!("{ids:?}");
    Ok(())
}

/// Sends the ids at `position` and after through all shards; the token that the last one samples.
fn pass(shards: &mut [Shard], position: usize, ids: Vec<u32>) -> Result<Option<u32>, EngineError> {
    let sequences = vec![SequenceRows { session: SESSION, position, rows: ids.len(), wants: Wants::Last }];
    let mut step = Step { sequences, ids, ..Step::default() };
    for shard in shards {
        match shard.step(&step)? {
            StepOutput::Hidden(hidden) => step.hidden = Some(hidden),
            StepOutput::Sampled(samples) => {
                return samples.rows.into_iter().next().map(|row| Ok(row?.token)).transpose();
            }
        }
    }
    Ok(None)
}
