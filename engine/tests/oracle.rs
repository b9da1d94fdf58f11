//! The engine against the oracle: the same models computed by our kernels and by plain tensor operations.

use std::{fs, path::Path};

use qmesh_engine::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{Shard, TensorSource},
    step::{SequenceRows, Step, StepOutput, Wants},
};
use qmesh_models::{
    spec::{ModelSpec, TensorSpec},
    weights::ModelFile,
};
use qmesh_oracle::{Activations, CacheType, Device, Input, OracleShard, Output, Rounding};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");
const SESSION: u64 = 1;
/// More than a page of the engine's cache.
const PROMPT_ROWS: usize = 70;
const DECODE_STEPS: usize = 8;

#[test]
fn measure() {
    for name in names() {
        let file = open(&name);
        let count = file.spec().layers.len();
        let all: Vec<usize> = (1..count).collect();
        for (what, rounding) in [
            ("engine", Rounding::ENGINE),
            ("f16", Rounding { cache: CacheType::F16, activations: Activations::Exact }),
            ("none", Rounding::NONE),
        ] {
            for (cuts, fed) in [(&[][..], Fed::Own), (&[count / 2], Fed::Own), (&all, Fed::Engine)] {
                let run = compare(file.spec(), &file, cuts, rounding, fed);
                println!(
                    "{name} {what} {cuts:?} {fed:?}: median {:.1e} p90 {:.1e} largest {:.1e} same top {}",
                    run.quantile(0.5),
                    run.quantile(0.9),
                    run.quantile(1.0),
                    run.same_top()
                );
            }
        }
    }
}

/// What each stage of the oracle is fed with.
#[derive(Clone, Copy, Debug)]
enum Fed {
    /// The hidden rows of its own stage before.
    Own,
    /// Those of the engine's, so that differences do not add up.
    Engine,
}

/// How far the engine's rows are from the oracle's.
#[derive(Debug, Default)]
struct Distances {
    /// For each row of each stage: the RMS of the difference, relative to that of the oracle's row less its mean.
    rows: Vec<f64>,
    /// For each row of logits: whether the largest one is that of the same id.
    tops: Vec<bool>,
}

impl Distances {
    fn add(&mut self, engine: &[f32], oracle: &[f32]) {
        let len = oracle.len() as f64;
        let mean = oracle.iter().map(|x| f64::from(*x)).sum::<f64>() / len;
        let size: f64 = oracle.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        let error: f64 = engine.iter().zip(oracle).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
        self.rows.push((error / size).sqrt());
    }

    /// The distance that this share of the rows does not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.rows.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[((sorted.len() - 1) as f64 * share) as usize]
    }

    /// Share of the rows whose likeliest id is the same.
    fn same_top(&self) -> f64 {
        self.tops.iter().filter(|same| **same).count() as f64 / self.tops.len() as f64
    }
}

/// A prompt in one step and then some steps of one row each, the ids of which the engine chooses, cut before each layer of
/// `cuts`.
fn compare(spec: &ModelSpec, file: &ModelFile, cuts: &[usize], rounding: Rounding, fed: Fed) -> Distances {
    let starts = [0].iter().chain(cuts).copied();
    let stages: Vec<_> = starts.zip(cuts.iter().copied().chain([spec.layers.len()])).collect();
    let mut engine: Vec<Shard> = stages.iter().map(|(start, end)| load(spec, file, *start..*end)).collect();
    let open =
        |(start, end): &(usize, usize)| OracleShard::open(spec, file, *start..*end, &Device::Cpu, rounding).unwrap();
    let mut oracle: Vec<OracleShard> = stages.iter().map(open).collect();
    let mut distances = Distances::default();
    let mut ids: Vec<u32> = (0..PROMPT_ROWS).map(|i| (i * i * 31 + 7 * i + 3) as u32 % spec.vocab as u32).collect();
    let mut position = 0;
    for _ in 0..=DECODE_STEPS {
        let (mut from_engine, mut from_oracle) = (None::<Vec<f32>>, None::<Vec<f32>>);
        for (engine, oracle) in engine.iter_mut().zip(&mut oracle) {
            let into_oracle = match fed {
                Fed::Own => &from_oracle,
                Fed::Engine => &from_engine,
            };
            let input = into_oracle.as_deref().map_or(Input::Ids(&ids), Input::Hidden);
            let ours = step(engine, &ids, from_engine.as_deref(), position, spec.vocab);
            let (theirs, width) = match oracle.forward(SESSION, input, position).unwrap() {
                Output::Hidden(rows) => (rows, spec.hidden),
                Output::Logits(rows) => (rows, spec.vocab),
            };
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.chunks(width).zip(theirs.chunks(width)) {
                distances.add(ours, theirs);
            }
            (from_engine, from_oracle) = (Some(ours), Some(theirs));
        }
        let logits = from_engine.unwrap();
        let rows = logits.chunks(spec.vocab).zip(from_oracle.as_ref().unwrap().chunks(spec.vocab));
        distances.tops.extend(rows.map(|(ours, theirs)| likeliest(ours) == likeliest(theirs)));
        position += ids.len();
        ids = vec![likeliest(&logits[logits.len() - spec.vocab..])];
    }
    distances
}

/// What one stage of the engine makes of rows: its hidden rows or all their logits.
fn step(shard: &mut Shard, ids: &[u32], hidden: Option<&[f32]>, position: usize, vocab: usize) -> Vec<f32> {
    let sequences = vec![SequenceRows { session: SESSION, position, rows: ids.len(), wants: Wants::All }];
    let step = Step { sequences, ids: ids.to_vec(), hidden: hidden.map(<[f32]>::to_vec) };
    match shard.step(&step).unwrap() {
        StepOutput::Hidden(rows) => rows,
        StepOutput::Sampled(rows) => {
            let logits = rows.iter().flat_map(|row| {
                let mut logits = vec![f32::NAN; vocab];
                row.top.iter().for_each(|(id, logit, _)| logits[*id as usize] = *logit);
                logits
            });
            logits.collect()
        }
    }
}

fn load(spec: &ModelSpec, file: &ModelFile, layers: std::ops::Range<usize>) -> Shard {
    let own = spec.shard(layers.clone());
    let mut shard = Shard::load(&own, layers, 128, 1, &Source(file), &mut |_| {}).unwrap();
    let sampling = SamplingParameters { top: spec.vocab, ..SamplingParameters::default() };
    shard.open(SESSION, 128, sampling).unwrap();
    shard
}

struct Source<'a>(&'a ModelFile);

impl TensorSource for Source<'_> {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        let read = self.0.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..).zip(logits).max_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap().0
}

fn names() -> Vec<String> {
    let files = fs::read_dir(GOLDEN).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.filter_map(|file| file.strip_suffix(".gguf").map(str::to_owned)).collect();
    names.sort();
    names
}

fn open(name: &str) -> ModelFile {
    ModelFile::open(Path::new(GOLDEN).join(format!("{name}.gguf"))).unwrap()
}
