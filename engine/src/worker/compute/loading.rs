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
    failure::{Failure, guarded},
};
use crate::{
    backend::{Backend, ExpertsHeld, HeldTensors, ShardRequest},
    error::EngineError,
    worker::{assignment::Assignment, tensors::TensorPlaces, turn::Turn},
};

/// A shard that is to be loaded for one turn.
#[derive(Debug)]
pub(crate) struct LoadRequest {
    pub(crate) turn: Turn,
    pub(crate) assignment: Arc<Assignment>,
    /// Where the other tensors lie.
    pub(crate) places: TensorPlaces,
    /// Those that another shard has.
    pub(crate) taken_over: Arc<HeldTensors>,
    /// Bytes of the tensors to be read.
    pub(crate) bytes_total: u64,
    /// Gone when nobody wants the shard any more: then no further tensor is read.
    pub(crate) wanted: Weak<()>,
}

impl LoadRequest {
    /// Starts the thread; `done` hears how it goes and, as the last word, how it ended.
    pub(crate) fn spawn(self, backend: Arc<dyn Backend>, done: mpsc::Sender<Done>) {
        let (turn, answers) = (self.turn, done.clone());
        let load = move || {
            // Without a receiver the worker is ending, and nobody asks how far this is.
            let answer = self.run(&*backend, &mut |progress| drop(done.blocking_send(progress)));
            let _ = done.blocking_send(answer);
        };
        if let Err(error) = thread::Builder::new().name("qmesh-load".into()).spawn(load) {
            let failure = Failure::Thread(error.to_string());
            tokio::spawn(async move { answers.send(Done::NotLoaded { turn, failure }).await });
        }
    }

    /// Loads the shard; `progress` hears how far it is, and the answer is how it ended.
    pub(crate) fn run(&self, backend: &dyn Backend, progress: &mut dyn FnMut(Done)) -> Done {
        let (turn, bytes_total, since) = (self.turn, self.bytes_total, Instant::now());
        let Assignment { spec, layers, kv_positions, experts_in_memory, .. } = &*self.assignment;
        let (layers, kv_positions, held) = (layers.clone(), *kv_positions, &*self.taken_over);
        let read = |tensor: &TensorSpec, into: &mut [u8]| self.read(tensor, into);
        let open = |tensor: &TensorSpec| {
            self.check_wanted(tensor)?;
            self.places.open(tensor)
        };
        let experts = match experts_in_memory {
            None => ExpertsHeld::All,
            Some(each) => ExpertsHeld::Some { each: *each, open: &open },
        };
        let request = ShardRequest { spec, layers, kv_positions, held, read: &read, experts };
        let mut told = |bytes_done| progress(Done::Loading { turn, bytes_done, bytes_total });
        let loaded = guarded(|| {
            let shard = backend.load(&request, &mut told)?;
            Ok(Loaded { tensors: shard.tensors(), shard })
        });
        match loaded {
            Ok(loaded) => Done::Loaded { turn, loaded, took: since.elapsed() },
            Err(failure) => Done::NotLoaded { turn, failure },
        }
    }

    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        self.check_wanted(tensor)?;
        self.places.read(tensor, into)
    }

    fn check_wanted(&self, tensor: &TensorSpec) -> Result<(), EngineError> {
        if self.wanted.strong_count() > 0 {
            return Ok(());
        }
        let reason = "the plan that wanted it is no more".into();
        Err(EngineError::Read { tensor: tensor.name.clone(), reason })
    }
}
