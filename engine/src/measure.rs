//! How fast this machine computes a model, found by computing a small one of the same kind.
//!
//! Steps of few rows take the time of reading the weights, so that there must be more of them than the caches hold; steps
//! of many rows take that of computing, for which a few layers are enough. What counts is the median of the time on the CPU, so
//! that what else happens in that second counts little, over the part of a CPU that this process has at all.

use std::{ops::Range, time::Duration};

use qmesh_models::{
    footprint::PAGE_POSITIONS,
    spec::{ModelSpec, TensorRole, TensorSpec},
    tensor::TensorType,
};

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, ExpertsHeld, HeldTensors, LoadedShard, ShardRequest},
    error::EngineError,
    measure::clock::{Clock, CpuPart},
    sample::SamplingParameters,
    step::{SequenceRows, Step, Wants},
};

mod clock;

/// The time of steps of so many rows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct StepTime {
    /// Rows of the step.
    pub rows: usize,
    /// Picoseconds for each byte of the layers' weights that a token reads.
    pub layers_ps_per_byte: f64,
    /// Picoseconds for each byte of the head.
    pub head_ps_per_byte: f64,
}

/// What is found out about a machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MachineSpeed {
    /// How long steps take, in increasing rows.
    pub steps: Vec<StepTime>,
    /// Picoseconds for each byte of keys and values that a row of a prompt meets; `None` where there are none, or it was
    /// not measured.
    pub attention_ps_per_byte: Option<f64>,
    /// How quickly the disk of the cache is read, where that was measured.
    pub disk_bytes_per_s: Option<u64>,
}

/// Measures steps of 1, 4, 8, 32, 64 and 256 rows of `excerpt`, a whole model that is small enough to be loaded beside whatever
/// else this machine does, and attention by steps at the beginning of a text and further on. Takes about a second, and the
/// memory of that model with [`POSITIONS`]. Nothing is said of a disk.
///
/// # Errors
/// As [`Backend::load`] and [`LoadedShard::step`].
pub fn measure(backend: &dyn Backend, excerpt: &ModelSpec) -> Result<MachineSpeed, EngineError> {
    measure_for(backend, excerpt, LONG_ENOUGH)
}

/// The same, each kind of step for so long.
fn measure_for(backend: &dyn Backend, excerpt: &ModelSpec, enough: Duration) -> Result<MachineSpeed, EngineError> {
    let layers = excerpt.layers.len();
    // The last layer, or as many as cannot be parted from it, goes with the head, where there are several.
    let last = excerpt.cuts().last().unwrap_or(0)..layers;
    let alone = last.start == 0;
    let body = 0..if alone { layers } else { last.start };
    let mut part = CpuPart::default();
    let mut times = |layers: &Range<usize>, rows: &[usize]| -> Result<Vec<Times>, EngineError> {
        Trial::load(backend, excerpt, layers.clone(), enough)?.each(rows, &mut part)
    };
    let few = times(&body, &FEW)?;
    let head = times(&last, &FEW)?;
    let some = 0..body.end.min(layers_of(excerpt, MANY_BYTES));
    let mut trial = Trial::load(backend, excerpt, some.clone(), enough)?;
    let many = trial.each(&MANY, &mut part)?;
    // A session with a state cannot write over what lies far behind; few of its layers attend to anything.
    let further = (!excerpt.has_states()).then(|| {
        trial.write(MANY[2], ATTENDED - MANY[2])?;
        trial.times(ATTENDED, MANY[1], &mut part)
    });
    let further = further.transpose()?;
    let part = part.median();
    let seconds = |times: &[Times]| times.iter().map(|times| times.seconds(part)).collect::<Vec<_>>();
    let (body_bytes, some_bytes) = (layer_bytes(excerpt, &body), layer_bytes(excerpt, &some));
    // Something is divided by it.
    let (last_bytes, head_bytes) = (layer_bytes(excerpt, &last), excerpt.head_bytes().max(1) as f64);
    let mut points = Vec::new();
    for ((rows, few_s), head_s) in FEW.into_iter().zip(seconds(&few)).zip(seconds(&head)) {
        let layer_ps = PS_PER_S * few_s / if alone { body_bytes + head_bytes } else { body_bytes };
        let head_ps = (PS_PER_S * head_s - layer_ps * last_bytes).max(0.0) / head_bytes;
        points.push(StepTime { rows, layers_ps_per_byte: layer_ps, head_ps_per_byte: head_ps });
    }
    // The head's rows are those of few streams, or the last ones of prompts.
    let per_row = points[FEW.len() - 1].head_ps_per_byte / FEW_MOST as f64;
    for (rows, many_s) in MANY.into_iter().zip(seconds(&many)) {
        let layers_ps_per_byte = PS_PER_S * many_s / some_bytes;
        points.push(StepTime { rows, layers_ps_per_byte, head_ps_per_byte: per_row * rows as f64 });
    }
    let met = MANY[1] as f64 * excerpt.attended_bytes(&some, ATTENDED) as f64;
    let attention_s = further.map_or(0.0, |further| further.seconds(part) - many[1].seconds(part));
    let attention_ps_per_byte = (met > 0.0 && attention_s > 0.0).then(|| PS_PER_S * attention_s / met);
    Ok(MachineSpeed { steps: points, attention_ps_per_byte, disk_bytes_per_s: None })
}

/// Positions of the text that is measured with.
pub const POSITIONS: usize = (ATTENDED + MANY[1]).next_multiple_of(PAGE_POSITIONS);
/// Rows of the largest step that is measured.
pub const ROWS_MOST: usize = MANY[2];

/// A loaded piece of the excerpt, with one session.
struct Trial<'a> {
    shard: Box<dyn LoadedShard>,
    excerpt: &'a ModelSpec,
    layers: Range<usize>,
    /// How long each kind of step is measured.
    enough: Duration,
}

impl<'a> Trial<'a> {
    fn load(
        backend: &dyn Backend,
        excerpt: &'a ModelSpec,
        layers: Range<usize>,
        enough: Duration,
    ) -> Result<Self, EngineError> {
        let (held, read) = (HeldTensors::new(), |tensor: &TensorSpec, into: &mut [u8]| {
            fill(tensor, into);
            Ok(())
        });
        let spec = excerpt.shard(layers.clone());
        let request = ShardRequest {
            spec: &spec,
            layers: layers.clone(),
            kv_positions: POSITIONS,
            held: &held,
            read: &read,
            experts: ExpertsHeld::All,
        };
        let mut shard = backend.load(&request, &mut |_| ())?;
        shard.open(SESSION, POSITIONS, SamplingParameters::default())?;
        Ok(Self { shard, excerpt, layers, enough })
    }

    /// A step of `rows` rows behind so many positions.
    fn step(&self, position: usize, rows: usize) -> Step {
        let is_last = self.layers.end == self.excerpt.layers.len();
        let wants = if is_last && rows <= FEW_MOST { Wants::All } else { Wants::None };
        let hidden = (self.layers.start > 0).then(|| noise(rows * self.excerpt.row_width(self.layers.start)));
        Step {
            sequences: vec![SequenceRows { session: SESSION, position, rows, wants }],
            ids: (0..rows).map(|row| (row % self.excerpt.vocab.max(1)) as u32).collect(),
            hidden,
            ..Step::default()
        }
    }

    /// Makes the text so many rows longer.
    fn write(&mut self, position: usize, rows: usize) -> Result<(), EngineError> {
        let step = self.step(position, rows);
        self.shard.step(&step).map(drop)
    }

    /// What steps of each of these numbers of rows take at the beginning of the text.
    fn each(&mut self, rows: &[usize], part: &mut CpuPart) -> Result<Vec<Times>, EngineError> {
        rows.iter().map(|&rows| self.times(0, rows, part)).collect()
    }

    /// What steps of `rows` rows take behind so many positions. Each is written over the one before.
    fn times(&mut self, position: usize, rows: usize, part: &mut CpuPart) -> Result<Times, EngineError> {
        let step = self.step(position, rows);
        // The first one finds nothing where it needs it.
        self.shard.step(&step)?;
        let (began, mut times) = (Clock::now(), Times::default());
        let mut before = began;
        while times.wall.len() < STEPS_MOST {
            self.shard.step(&step)?;
            let now = Clock::now();
            times.add(now.since(before), part);
            before = now;
            let passed = now.since(began).wall;
            if passed > TOO_LONG || (passed > self.enough && times.wall.len() >= STEPS_LEAST) {
                break;
            }
        }
        Ok(times)
    }
}

/// What steps of one kind took, in seconds.
#[derive(Debug, Default)]
struct Times {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Times {
    fn add(&mut self, step: Clock, part: &mut CpuPart) {
        part.add(step);
        self.wall.push(step.wall.as_secs_f64());
        self.cpu.push(step.cpu.as_secs_f64());
    }

    /// The usual time of one step for whoever has such a part of a CPU.
    fn seconds(&self, part: f64) -> f64 {
        // A thread that hardly computes waits for something else, and that takes its own time.
        if part < PART_LEAST { clock::median(&self.wall) } else { clock::median(&self.cpu) / part }
    }
}

/// Bytes that a token reads of these layers; at least 1, as something is divided by it.
fn layer_bytes(spec: &ModelSpec, layers: &Range<usize>) -> f64 {
    let inside = |t: &&TensorSpec| matches!(t.role, TensorRole::Layer(layer, _) if layers.contains(&layer.0));
    spec.tensors.iter().filter(inside).map(|tensor| spec.bytes_per_token(tensor)).sum::<u64>().max(1) as f64
}

/// How many layers have so many bytes together; at least 1.
fn layers_of(spec: &ModelSpec, bytes: u64) -> usize {
    let layers = spec.layers.len();
    let each = layer_bytes(spec, &(0..layers)) / layers as f64;
    ((bytes as f64 / each) as usize).clamp(1, layers)
}

/// Weights of which every product is finite. Small numbers, so that a router's scores differ from row to row; quantised
/// tensors are zeros, as their arithmetic takes the same time whatever they hold.
fn fill(tensor: &TensorSpec, into: &mut [u8]) {
    if tensor.dtype == TensorType::F32 {
        let values = noise(into.len() / size_of::<f32>());
        for (bytes, value) in into.chunks_exact_mut(size_of::<f32>()).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    } else {
        into.fill(0);
    }
}

/// Numbers between -0.5 and 0.5 that follow no pattern, the same each time.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Rows of steps that read the weights.
const FEW: [usize; 3] = [1, 4, 8];
/// Of them the most.
const FEW_MOST: usize = FEW[2];
/// Rows of steps that compute with them.
const MANY: [usize; 3] = [32, 64, 256];
/// Positions before the rows with which attention is measured.
const ATTENDED: usize = 448;
/// Bytes of layers that steps of many rows are measured with.
const MANY_BYTES: u64 = 24 << 20;
/// The only session.
const SESSION: u64 = 1;
/// Steps of each kind, at least.
const STEPS_LEAST: usize = 3;
/// And at most, where they are quick.
const STEPS_MOST: usize = 200;
/// All kinds together take a second.
const LONG_ENOUGH: Duration = Duration::from_millis(150);
/// No kind of step is measured for longer.
const TOO_LONG: Duration = Duration::from_millis(600);
/// Less of a CPU than this no worker has that does its own computing.
const PART_LEAST: f64 = 0.1;
const PS_PER_S: f64 = 1e12;

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, path::Path};

    use qmesh_models::{family, gguf::Gguf};

    use super::*;
    use crate::backend::cpu::CpuBackend;

    #[test]
    fn every_tiny_model_can_be_measured() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny"));
        let models = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut tried = 0;
        for path in models.filter(|path| path.extension().is_some_and(|e| e == "gguf")) {
            let spec = family::spec(&Gguf::open(&path).unwrap()).unwrap();
            for bytes in [0, u64::MAX] {
                let backend = CpuBackend::new(NonZeroUsize::MIN);
                let found = measure_for(&backend, &spec.excerpt(bytes), Duration::from_millis(2));
                let MachineSpeed { steps: points, attention_ps_per_byte, .. } =
                    found.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(attention_ps_per_byte.is_none_or(|ps| ps.is_finite() && ps > 0.0));
                assert_eq!(points.iter().map(|point| point.rows).collect::<Vec<_>>(), [1, 4, 8, 32, 64, 256]);
                let sound = |point: &StepTime| point.layers_ps_per_byte > 0.0 && point.head_ps_per_byte.is_finite();
                assert!(points.iter().all(sound), "{}: {points:?}", path.display());
            }
            tried += 1;
        }
        assert!(tried > 10, "only {tried} models");
    }
}
