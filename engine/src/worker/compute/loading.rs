//! Loading a shard on a thread of its own, so that the shards at work go on computing.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Instant,
};

use qmesh_models::spec::TensorSpec;
use tokio::sync::mpsc;

use super::{
    command::{Done, Loaded},
    emulation::{Compute, Computer},
    failure::{Failure, guarded},
};
use crate::{
    error::EngineError,
    shard::{PackedTensor, PackedTensors, Shard, TensorSource},
    worker::{assignment::Assignment, tensors::TensorPlaces, turn::Turn},
};

/// Everything needed to load the shard of one turn.
#[derive(Debug)]
pub(crate) struct LoadRequest {
    pub(crate) turn: Turn,
    pub(crate) assignment: Arc<Assignment>,
    /// Where the other tensors lie.
    pub(crate) places: TensorPlaces,
    /// Those that another shard has.
    pub(crate) taken_over: Arc<PackedTensors>,
    /// Of the tensors to be read.
    pub(crate) bytes_total: u64,
    /// Gone when nobody wants the shard any more: then no further tensor is read.
    pub(crate) wanted: Weak<()>,
}

impl LoadRequest {
    /// Starts the thread; `done` hears how it goes and, as the last word, how it ended.
    pub(crate) fn spawn(self, threads: usize, compute: Compute, done: mpsc::Sender<Done>) {
        let (turn, answers) = (self.turn, done.clone());
        let load = move || {
            let answer = self.run(threads, compute, &done);
            // Without a receiver the worker is ending.
            let _ = done.blocking_send(answer);
        };
        if let Err(error) = thread::Builder::new().name("qmesh-load".into()).spawn(load) {
            let failure = Failure::Thread(error.to_string());
            tokio::spawn(async move { answers.send(Done::NotLoaded { turn, failure }).await });
        }
    }

    fn run(&self, threads: usize, compute: Compute, done: &mpsc::Sender<Done>) -> Done {
        let (turn, bytes_total, since) = (self.turn, self.bytes_total, Instant::now());
        let Assignment { spec, layers, kv_positions, .. } = &*self.assignment;
        // Progress is told best-effort: nobody waits for it, and the last word says how it ended.
        let mut told = |bytes_done| drop(done.blocking_send(Done::Loading { turn, bytes_done, bytes_total }));
        let loaded = guarded(|| match compute {
            Compute::Real => {
                let shard = Shard::load(spec, layers.clone(), *kv_positions, threads, self, &mut told)?;
                let tensors = shard.tensors().clone();
                Ok(Loaded { computer: Computer::Shard(Box::new(shard)), tensors })
            }
            Compute::Emulated(emulation) => {
                let computer = Computer::Emulated(emulation.stage(spec, layers));
                Ok(Loaded { computer, tensors: PackedTensors::new() })
            }
        });
        match loaded {
            Ok(loaded) => Done::Loaded { turn, loaded, took: since.elapsed() },
            Err(failure) => Done::NotLoaded { turn, failure },
        }
    }
}

impl TensorSource for LoadRequest {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        if self.wanted.strong_count() == 0 {
            let reason = "the plan that wanted it is no more".into();
            return Err(EngineError::Read { tensor: tensor.name.clone(), reason });
        }
        self.places.read(tensor, into)
    }

    fn packed(&self, tensor: &TensorSpec) -> Option<PackedTensor> {
        self.taken_over.get(&tensor.role).cloned()
    }
}
