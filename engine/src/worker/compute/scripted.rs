//! A shard for tests, which computes what the test says.

use crate::{
    backend::{HeldTensors, LoadedShard},
    error::EngineError,
    sample::SamplingParameters,
    step::{Prefix, Step, StepOutput},
};

/// What comes of a step is what the function makes of it. Any session may be opened, and none takes room.
#[derive(Debug)]
pub(crate) struct ScriptedShard(pub(crate) fn(&Step) -> Result<StepOutput, EngineError>);

impl LoadedShard for ScriptedShard {
    fn open(&mut self, _: u64, _: usize, _: SamplingParameters) -> Result<(), EngineError> {
        Ok(())
    }

    fn fork(&mut self, _: u64, _: usize, _: SamplingParameters, _: Prefix) -> Result<(), EngineError> {
        Ok(())
    }

    fn keep(&mut self, _: u64, _: usize) -> Result<(), EngineError> {
        Ok(())
    }

    fn close(&mut self, _: u64) -> Result<(), EngineError> {
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        (self.0)(step)
    }

    fn kv_positions_used(&self) -> usize {
        0
    }

    fn tensors(&self) -> HeldTensors {
        HeldTensors::new()
    }
}
