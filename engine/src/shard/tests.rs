//! Shards on the golden models: close to the reference, the same bits however they are run, and steps refused whole.

mod exactness;
mod filed;
mod golden;
mod refusals;
mod shared;

use std::{fs, ops::Range};

use qmesh_models::{
    family,
    gguf::Gguf,
    spec::{LayerSpec, TensorSpec},
    tensor::TensorType,
};

use super::*;
use crate::{sample::LogitsDigest, step::Wants};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/");

/// A GGUF in memory.
struct File(Vec<u8>);

impl TensorSource for File {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        into.copy_from_slice(&self.0[tensor.offset as usize..][..into.len()]);
        Ok(())
    }
}

fn open_model(name: &str) -> (ModelSpec, File) {
    let path = format!("{GOLDEN}{name}.gguf");
    let spec = family::spec(&Gguf::open(&path).unwrap()).unwrap();
    (spec, File(fs::read(&path).unwrap()))
}

/// Names of the tiny models with F32 weights: one for each kind of block.
fn kinds() -> Vec<String> {
    let files = fs::read_dir(GOLDEN).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let models = files.filter_map(|name| name.strip_suffix(".gguf").map(str::to_owned));
    let is_plain = |name: &String| open_model(name).0.tensors.iter().all(|t| t.dtype == TensorType::F32);
    let mut names: Vec<String> = models.filter(is_plain).collect();
    names.sort();
    assert!(names.len() >= 5, "only {names:?} in {GOLDEN}");
    names
}

/// The first of them whose spec is as asked.
fn kind(wanted: impl Fn(&ModelSpec) -> bool) -> (ModelSpec, File) {
    kinds().iter().map(|name| open_model(name)).find(|(spec, _)| wanted(spec)).unwrap()
}

/// The shards of a model, one behind another.
struct Pipeline(Vec<Shard>);

impl Pipeline {
    /// Cut before each layer of `cuts`.
    fn new((spec, file): &(ModelSpec, File), cuts: &[usize], threads: usize, simd: Simd) -> Self {
        let starts = [0].iter().chain(cuts).copied();
        let ends = cuts.iter().copied().chain([spec.layers.len()]);
        let load = |layers: Range<usize>| {
            let own = spec.shard(layers.clone());
            let mut loaded = 0;
            let shard = Shard::load_on(simd, &own, layers.clone(), 4096, threads, file, &mut |bytes| loaded = bytes);
            assert_eq!(loaded, spec.shard_bytes(&layers));
            shard.unwrap()
        };
        Self(starts.zip(ends).map(|(start, end)| load(start..end)).collect())
    }

    fn open(&mut self, session: u64, sampling: &SamplingParameters) {
        self.0.iter_mut().for_each(|shard| shard.open(session, 512, sampling.clone()).unwrap());
    }

    fn close(&mut self, session: u64) {
        self.0.iter_mut().for_each(|shard| shard.close(session).unwrap());
    }

    /// Rows of one session.
    fn feed(&mut self, session: u64, position: usize, ids: &[u32], wants: Wants) -> Vec<SampledRow> {
        let sequences = vec![SequenceRows { session, position, rows: ids.len(), wants }];
        self.step(Step { sequences, ids: ids.to_vec(), ..Step::default() })
    }

    fn step(&mut self, step: Step) -> Vec<SampledRow> {
        self.samples(step).rows.into_iter().map(Result::unwrap).collect()
    }

    fn samples(&mut self, mut step: Step) -> Samples {
        let (last, others) = self.0.split_last_mut().unwrap();
        for shard in others {
            match shard.step(&step).unwrap() {
                StepOutput::Hidden(hidden) => step.hidden = Some(hidden),
                StepOutput::Sampled(samples) => panic!("{samples:?} before the last stage"),
            }
        }
        match last.step(&step).unwrap() {
            StepOutput::Sampled(samples) => samples,
            StepOutput::Hidden(_) => panic!("the last stage samples"),
        }
    }
}

fn with_digest() -> SamplingParameters {
    SamplingParameters { digest: LogitsDigest::Compute, ..SamplingParameters::default() }
}
