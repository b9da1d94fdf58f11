//! The CPU as a backend: our own kernels over packed weights, on a thread team for each shard.

use std::{num::NonZeroUsize, sync::Arc};

use qmesh_models::{numerics, spec::TensorSpec};

use super::{Backend, ExpertsHeld, HeldTensor, HeldTensors, LoadedShard, ShardRequest, TensorFile};
use crate::{
    error::EngineError,
    numerics::digest,
    sample::SamplingParameters,
    shard::{PackedTensor, Shard, TensorSource},
    step::{Prefix, Step, StepOutput},
};

/// The cores of this machine, or some of them.
#[derive(Clone, Copy, Debug)]
pub struct CpuBackend {
    threads: NonZeroUsize,
}

impl CpuBackend {
    /// Computes each shard's steps on so many threads.
    pub fn new(threads: NonZeroUsize) -> Self {
        Self { threads }
    }
}

impl Backend for CpuBackend {
    fn numerics(&self) -> Result<String, EngineError> {
        Ok(numerics::named(digest()?))
    }

    fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    fn load(
        &self,
        request: &ShardRequest<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Box<dyn LoadedShard>, EngineError> {
        let ShardRequest { spec, layers, kv_positions, .. } = request;
        let (threads, source) = (self.threads.get(), Requested(request));
        Ok(Box::new(Shard::load(spec, layers.clone(), *kv_positions, threads, &source, progress)?))
    }
}

impl LoadedShard for Shard {
    fn open(&mut self, session: u64, max_positions: usize, sampling: SamplingParameters) -> Result<(), EngineError> {
        Self::open(self, session, max_positions, sampling)
    }

    fn fork(
        &mut self,
        session: u64,
        max_positions: usize,
        sampling: SamplingParameters,
        prefix: Prefix,
    ) -> Result<(), EngineError> {
        Self::fork(self, session, max_positions, sampling, prefix)
    }

    fn keep(&mut self, session: u64, positions: usize) -> Result<(), EngineError> {
        Self::keep(self, session, positions)
    }

    fn close(&mut self, session: u64) -> Result<(), EngineError> {
        Self::close(self, session)
    }

    fn step(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        Self::step(self, step)
    }

    fn kv_positions_used(&self) -> usize {
        Self::kv_positions_used(self)
    }

    fn tensors(&self) -> HeldTensors {
        let tensors = Self::tensors(self).iter();
        tensors.map(|(role, tensor)| (*role, HeldTensor::new(tensor.clone()))).collect()
    }
}

/// A request's tensors as a shard takes them.
struct Requested<'a>(&'a ShardRequest<'a>);

impl TensorSource for Requested<'_> {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        (self.0.read)(tensor, into)
    }

    fn packed(&self, tensor: &TensorSpec) -> Option<PackedTensor> {
        self.0.held.get(&tensor.role)?.get().cloned()
    }

    fn experts_in_memory(&self) -> Option<NonZeroUsize> {
        match self.0.experts {
            ExpertsHeld::All => None,
            ExpertsHeld::Some { each, .. } => Some(each),
        }
    }

    fn open(&self, tensor: &TensorSpec) -> Result<Arc<dyn TensorFile>, EngineError> {
        match self.0.experts {
            ExpertsHeld::All => {
                Err(EngineError::Read { tensor: tensor.name.clone(), reason: "it was to be in memory".into() })
            }
            ExpertsHeld::Some { open, .. } => open(tensor),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qmesh_models::weights::ModelFile;

    use super::*;
    use crate::{
        sample::LogitsDigest,
        shard::PAGE_POSITIONS,
        step::{SequenceRows, Wants},
    };

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");

    fn load(model: &ModelFile, held: &HeldTensors) -> (Box<dyn LoadedShard>, u64) {
        let read = |tensor: &TensorSpec, into: &mut [u8]| {
            let read = model.read_range(tensor.part, tensor.offset, into);
            read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
        };
        let spec = model.spec();
        let layers = 0..spec.layers.len();
        let request = ShardRequest {
            spec,
            layers,
            kv_positions: 4 * PAGE_POSITIONS,
            held,
            read: &read,
            experts: ExpertsHeld::All,
        };
        let mut bytes_read = 0;
        let backend: &dyn Backend = &CpuBackend::new(NonZeroUsize::MIN);
        let shard = backend.load(&request, &mut |bytes| bytes_read = bytes).unwrap();
        (shard, bytes_read)
    }

    /// The digest of the logits after the last id.
    fn step(shard: &mut dyn LoadedShard, session: u64, position: usize, ids: &[u32]) -> u64 {
        let rows = SequenceRows { session, position, rows: ids.len(), wants: Wants::Last };
        match shard.step(&Step { sequences: vec![rows], ids: ids.to_vec(), ..Step::default() }).unwrap() {
            StepOutput::Sampled(samples) => samples.rows[0].as_ref().unwrap().digest,
            StepOutput::Hidden(_) => panic!("the last stage samples"),
        }
    }

    #[test]
    fn shards_share_what_the_backend_holds_and_compute_the_same() {
        let model = ModelFile::open(Path::new(TINY)).unwrap();
        let (mut first, bytes_read) = load(&model, &HeldTensors::new());
        assert_eq!(bytes_read, model.spec().tensors.iter().map(|tensor| tensor.bytes).sum::<u64>());
        let (mut second, bytes_read) = load(&model, &first.tensors());
        assert_eq!((bytes_read, second.tensors().len()), (0, model.spec().tensors.len()));
        // What is none of its own is read, as if it were not there.
        let strange = first.tensors().into_keys().map(|role| (role, HeldTensor::new("of another backend"))).collect();
        assert!(load(&model, &strange).1 > 0);

        let sampling = SamplingParameters { digest: LogitsDigest::Compute, ..SamplingParameters::default() };
        for shard in [&mut first, &mut second] {
            shard.open(1, 2 * PAGE_POSITIONS, sampling.clone()).unwrap();
        }
        let ids: Vec<u32> = (0..70).map(|i| i % 9).collect();
        assert_eq!(step(&mut *first, 1, 0, &ids), step(&mut *second, 1, 0, &ids));
        let prefix = Prefix { session: 1, positions: PAGE_POSITIONS };
        second.fork(2, 2 * PAGE_POSITIONS, sampling, prefix).unwrap();
        assert_eq!(second.kv_positions_used(), 2 * PAGE_POSITIONS, "what is shared counts once");
        second.keep(1, PAGE_POSITIONS).unwrap();
        second.close(1).unwrap();
        let again = step(&mut *second, 2, PAGE_POSITIONS, &ids[PAGE_POSITIONS..]);
        assert_eq!(step(&mut *first, 1, PAGE_POSITIONS, &ids[PAGE_POSITIONS..]), again);
        assert_eq!(second.close(1), Err(EngineError::UnknownSession { session: 1 }));
    }
}
