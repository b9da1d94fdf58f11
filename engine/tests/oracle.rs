//! The engine against the oracle: the same models computed by our kernels and by plain tensor operations.

#[path = "oracle/latent.rs"]
mod latent;
#[path = "oracle/odd_shapes.rs"]
mod odd_shapes;
#[path = "oracle/variations.rs"]
mod variations;

use std::{env, fs, ops::Range, path::Path};

use half::{bf16, f16};
use qmesh_engine::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{Shard, TensorSource},
    step::{SequenceRows, Step, StepOutput, Wants},
};
use qmesh_models::{
    catalog,
    directories::Directories,
    gguf::GgufWriter,
    pull::{self, ModelRef, Silent},
    spec::{ModelSpec, TensorSpec},
    tensor::TensorType,
    weights::ModelFile,
};
use qmesh_oracle::{Activations, Device, Input, OracleShard, Output, Rounding};
use tempfile::TempDir;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");
const SESSION: u64 = 1;
/// More than a page of the engine's cache.
const PROMPT_ROWS: usize = 70;
const DECODE_STEPS: usize = 8;

#[test]
fn every_kind_of_layer_is_the_oracles() {
    let floats = |file: &ModelFile| file.spec().tensors.iter().all(|tensor| tensor.dtype == TensorType::F32);
    let mut report = Report::default();
    for (name, file) in golden().iter().filter(|(_, file)| floats(file)) {
        for (cuts, fed) in ways(file.spec()) {
            let distances = compare(file.spec(), file, &cuts, Rounding::ENGINE, fed);
            let bound = if fed == Fed::Engine { LAYER } else { MODEL };
            report.hold(&format!("{name}, {fed:?} rows, cut at {cuts:?}"), &distances, bound);
        }
    }
    report.check(68);
}

#[test]
fn every_type_of_weights_is_the_oracles() {
    let quantised = |file: &ModelFile| file.spec().tensors.iter().any(|tensor| tensor.dtype != TensorType::F32);
    let mut report = Report::default();
    for (name, file) in golden().iter().filter(|(_, file)| quantised(file)) {
        for (cuts, fed) in ways(file.spec()) {
            let distances = compare(file.spec(), file, &cuts, Rounding::ENGINE, fed);
            report.hold(&format!("{name}, {fed:?} rows, cut at {cuts:?}"), &distances, QUANTISED);
        }
        let exact = Rounding { activations: Activations::Exact, ..Rounding::ENGINE };
        let distances = compare(file.spec(), file, &[], exact, Fed::Own);
        report.hold(&format!("{name}, exact activations"), &distances, EXACT);
    }
    report.check(27 * 3);
}

#[test]
fn real_models_are_the_oracles() {
    if env::var("QMESH_MODELS").is_ok_and(|models| models == "all") {
        let directories = Directories::from_env().unwrap();
        let mut report = Report::default();
        for model in catalog::ALL {
            let path = pull::fetch(&ModelRef::Named(model), &directories, &mut Silent).unwrap();
            let file = ModelFile::open(path).unwrap();
            let each: Vec<usize> = (1..file.spec().layers.len()).collect();
            let distances = compare(file.spec(), &file, &each, Rounding::ENGINE, Fed::Engine);
            report.hold(model.name, &distances, REAL);
        }
        report.check(catalog::ALL.len());
    }
}

/// How far rows may be from the oracle's.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// Half of the rows, and all of them.
    median: f64,
    largest: f64,
    /// Share of the rows whose likeliest id must be the same.
    same_top: f64,
}

/// A layer that is given the engine's rows: only the order of sums differs, and in some rows a key or a value that it moves
/// to the next f16.
const LAYER: Bound = Bound { median: 2e-5, largest: 2e-3, same_top: 0.98 };
/// A whole model. An f16 that differs early is seen in all rows behind it.
const MODEL: Bound = Bound { median: 1e-3, largest: 5e-3, same_top: 0.98 };
/// Quantised weights: in some rows an activation moves to the next int8 step.
const QUANTISED: Bound = Bound { median: 2e-4, largest: 2e-2, same_top: 0.95 };
/// What rounding activations to int8 costs.
const EXACT: Bound = Bound { median: 2e-2, largest: 4e-2, same_top: 0.9 };
/// Layers of real models, in some rows of which a step of int8 is much of what the layer adds.
const REAL: Bound = Bound { median: 1e-4, largest: 0.1, same_top: 0.95 };

/// What was compared, and what was too far.
#[derive(Debug, Default)]
struct Report {
    compared: usize,
    beyond: Vec<String>,
}

impl Report {
    fn hold(&mut self, what: &str, distances: &Distances, bound: Bound) {
        let (median, largest, same_top) = (distances.quantile(0.5), distances.quantile(1.0), distances.same_top());
        let line = format!("{what}: median {median:.1e}, largest {largest:.1e}, same top {same_top:.3}");
        eprintln!("{line}");
        self.compared += 1;
        // A distance that is no number is beyond every bound.
        if !(median <= bound.median && largest <= bound.largest && same_top >= bound.same_top) {
            self.beyond.push(line);
        }
    }

    fn check(&self, least: usize) {
        assert!(self.compared >= least, "only {} comparisons", self.compared);
        assert!(self.beyond.is_empty(), "{}", self.beyond.join("\n"));
    }
}

/// A model in one shard, in two, and with a shard for each layer that is given the engine's rows.
fn ways(spec: &ModelSpec) -> Vec<(Vec<usize>, Fed)> {
    let (middle, each) = (spec.layers.len() / 2, spec.cuts().collect());
    let cut = spec.cuts().find(|cut| *cut >= middle).map(|cut| (vec![cut], Fed::Own));
    [(vec![], Fed::Own), (each, Fed::Engine)].into_iter().chain(cut).collect()
}

/// Blocks of random bytes, with scales among them that make weights of some 0.06.
fn fill(dtype: TensorType, bytes: &mut [u8], noise: &mut Noise) {
    let scales: &[(usize, f32)] = match dtype {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => &[],
        TensorType::MXFP4 | TensorType::NVFP4 | TensorType::IQ1M => &[],
        TensorType::IQ1S => &[(0, 0.01)],
        TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => &[(0, 0.001)],
        TensorType::IQ3XXS | TensorType::IQ3S => &[(0, 0.0005)],
        TensorType::TQ1_0 => &[(52, 0.06)],
        TensorType::TQ2_0 => &[(64, 0.06)],
        TensorType::Q1_0 | TensorType::Q2_0 => &[(0, 0.06)],
        TensorType::Q4_0 => &[(0, 0.013)],
        TensorType::Q4_1 => &[(0, 0.008), (2, -0.06)],
        TensorType::Q5_0 => &[(0, 0.0065)],
        TensorType::Q5_1 => &[(0, 0.004), (2, -0.06)],
        TensorType::Q8_0 => &[(0, 0.0008)],
        TensorType::Q2K => &[(80, 0.006), (82, 0.009)],
        TensorType::Q3K => &[(108, 0.0014)],
        TensorType::Q4K => &[(0, 0.0002), (2, 0.0015)],
        TensorType::Q5K => &[(0, 0.0001), (2, 0.0015)],
        TensorType::Q6K => &[(208, 0.000_045)],
        TensorType::IQ4NL => &[(0, 0.0009)],
        TensorType::IQ4XS => &[(0, 0.000_05)],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        block.iter_mut().for_each(|byte| *byte = noise.next() as u8);
        if dtype == TensorType::F32 {
            block.copy_from_slice(&noise.weight().to_le_bytes());
        } else if dtype == TensorType::F16 {
            block.copy_from_slice(&f16::from_f32(noise.weight()).to_le_bytes());
        } else if dtype == TensorType::BF16 {
            block.copy_from_slice(&bf16::from_f32(noise.weight()).to_le_bytes());
        } else if dtype == TensorType::MXFP4 {
            block[0] = 119 + block[0] % 4;
        } else if dtype == TensorType::NVFP4 {
            // 2^-7 to 2^-5.
            block[..4].iter_mut().for_each(|scale| *scale = *scale % 16 + 4);
        } else if dtype == TensorType::IQ1M {
            let half = f16::from_f32(0.01).to_bits();
            (0..4).for_each(|i| block[49 + 2 * i] = block[49 + 2 * i] & 0x0f | ((half >> (4 * i) & 0xf) as u8) << 4);
        }
        for (at, scale) in scales {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(*scale).to_le_bytes());
        }
    }
}

/// Numbers that look like chance.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Between -0.1 and 0.1.
    fn weight(&mut self) -> f32 {
        self.next() as f32 / (1_u64 << 31) as f32 * 0.2 - 0.1
    }
}

/// What each stage of the oracle is fed with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
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
    /// The engine's last row of logits.
    last: Vec<f32>,
}

impl Distances {
    fn add(&mut self, engine: &[f64], oracle: &[f64]) {
        let len = oracle.len() as f64;
        let mean = oracle.iter().sum::<f64>() / len;
        let size: f64 = oracle.iter().map(|x| (x - mean).powi(2)).sum();
        let error: f64 = engine.iter().zip(oracle).map(|(x, y)| (x - y).powi(2)).sum();
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
        for ((engine, oracle), layers) in engine.iter_mut().zip(&mut oracle).zip(&stages) {
            let into_oracle = match fed {
                Fed::Own => &from_oracle,
                Fed::Engine => &from_engine,
            };
            let input = into_oracle.as_deref().map_or(Input::Ids(&ids), Input::Hidden);
            let ours = step(engine, &ids, from_engine.as_deref(), position, spec.vocab);
            let (theirs, width) = match oracle.forward(SESSION, input, position).unwrap() {
                Output::Hidden(rows) => (rows, spec.row_width(layers.1)),
                Output::Logits(rows) => (rows, spec.vocab),
            };
            assert_eq!(ours.len(), theirs.len());
            // Of two results of the same rows, what was added to the rows is compared.
            let same = from_engine.as_deref().filter(|rows| fed == Fed::Engine && rows.len() == ours.len());
            let (added, expected) = (less(&ours, same), less(&theirs, same));
            added.chunks(width).zip(expected.chunks(width)).for_each(|(ours, theirs)| distances.add(ours, theirs));
            (from_engine, from_oracle) = (Some(ours), Some(theirs));
        }
        let logits = from_engine.unwrap();
        let rows = logits.chunks(spec.vocab).zip(from_oracle.as_ref().unwrap().chunks(spec.vocab));
        distances.tops.extend(rows.map(|(ours, theirs)| likeliest(ours) == likeliest(theirs)));
        position += ids.len();
        distances.last = logits[logits.len() - spec.vocab..].to_vec();
        ids = vec![likeliest(&distances.last)];
    }
    distances
}

/// `rows` without what they were before.
fn less(rows: &[f32], before: Option<&[f32]>) -> Vec<f64> {
    let before = before.unwrap_or_default().iter().chain(std::iter::repeat(&0.0));
    rows.iter().zip(before).map(|(row, before)| f64::from(*row) - f64::from(*before)).collect()
}

/// What one stage of the engine makes of rows: its hidden rows or all their logits.
fn step(shard: &mut Shard, ids: &[u32], hidden: Option<&[f32]>, position: usize, vocab: usize) -> Vec<f32> {
    let sequences = vec![SequenceRows { session: SESSION, position, rows: ids.len(), wants: Wants::All }];
    let step = Step { sequences, ids: ids.to_vec(), hidden: hidden.map(<[f32]>::to_vec), ..Step::default() };
    match shard.step(&step).unwrap() {
        StepOutput::Hidden(rows) => rows,
        StepOutput::Sampled(samples) => {
            let logits = samples.rows.iter().flatten().flat_map(|row| {
                let mut logits = vec![f32::NAN; vocab];
                row.top.iter().for_each(|(id, logit, _)| logits[*id as usize] = *logit);
                logits
            });
            logits.collect()
        }
    }
}

fn load(spec: &ModelSpec, file: &ModelFile, layers: Range<usize>) -> Shard {
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

/// The golden models by name.
fn golden() -> Vec<(String, ModelFile)> {
    let paths = fs::read_dir(GOLDEN).unwrap().map(|file| file.unwrap().path());
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut models: Vec<_> = paths.map(|path| (name(&path), ModelFile::open(&path).unwrap())).collect();
    models.sort_by(|(a, _), (b, _)| a.cmp(b));
    models
}
