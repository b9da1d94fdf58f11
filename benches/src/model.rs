//! Models from files as whole shards, the steps that are timed on them, and what a row costs.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use qmesh_engine::{
    error::EngineError,
    sample::SamplingParameters,
    shard::{PAGE_POSITIONS, Shard, TensorSource},
    step::{SampledRow, SequenceRows, Step, StepOutput, Wants},
};
use qmesh_models::{
    spec::{HeadMatrix, ModelSpec, TensorRole, TensorSpec},
    weights::ModelFile,
};

/// An opened GGUF.
#[derive(Debug)]
pub struct BenchModel {
    /// The file's stem.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    file: ModelFile,
}

/// What a row costs beyond its attention.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cost {
    /// Bytes of all tensors but a table that rows are only looked up in.
    pub weight_bytes: u64,
    /// Multiplications of one row with the weights of all layers.
    pub layer_macs: u64,
    /// Multiplications of one row with the head.
    pub head_macs: u64,
}

impl BenchModel {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// Names the file that is no model of ours.
    pub fn open(path: &Path) -> Result<Self> {
        let file = ModelFile::open(path)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, path: path.to_owned(), file })
    }

    /// Its shape.
    pub fn spec(&self) -> &ModelSpec {
        self.file.spec()
    }

    /// The whole model as one shard with sessions 0..`sessions` of `positions` each, and a note on how it was loaded.
    ///
    /// # Errors
    /// The model cannot be loaded, or sessions of that length do not fit.
    pub fn load(&self, sessions: u64, positions: usize, threads: usize) -> Result<(Shard, String)> {
        let spec = self.spec();
        let budget = usize::try_from(sessions)?.saturating_mul(positions.next_multiple_of(PAGE_POSITIONS));
        let started = Instant::now();
        let shard = Shard::load(spec, 0..spec.layers.len(), budget, threads, self, &mut |_| {});
        let mut shard = shard.with_context(|| self.name.clone())?;
        let seconds = started.elapsed().as_secs_f64();
        for session in 0..sessions {
            shard.open(session, positions, SamplingParameters::default())?;
        }
        let note = format!("{} -t {threads}: loaded in {seconds:.2} s, kernels {}", self.name, shard.simd());
        Ok((shard, note))
    }

    /// `count` ids that stand for session `session`'s prompt: speed does not depend on which they are.
    pub fn prompt(&self, session: u64, count: usize) -> Vec<u32> {
        let vocab = self.spec().vocab.max(1) as u64;
        let ids = (0..count as u64).map(|i| (session + i * 7919 + 13) % vocab);
        ids.map(|id| u32::try_from(id).unwrap_or_default()).collect()
    }

    /// Bytes of all its files, and the BLAKE3 of each in hexadecimal. Reads them: seconds for gigabytes.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn hashes(&self) -> Result<(u64, Vec<String>)> {
        let parts = self.file.gguf().parts();
        let hashes = parts.iter().map(|part| hash(&part.path)).collect::<Result<_>>()?;
        Ok((parts.iter().map(|part| part.bytes).sum(), hashes))
    }
}

impl TensorSource for BenchModel {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        let read = self.file.read_range(tensor.part, tensor.offset, into);
        read.map_err(|error| EngineError::Read { tensor: tensor.name.clone(), reason: error.to_string() })
    }
}

impl Cost {
    /// Of the tensors that `spec` lists.
    pub fn of(spec: &ModelSpec) -> Self {
        Self::of_stage(spec, 0..spec.layers.len())
    }

    /// Of the stage of these layers; the last one has the head as well.
    pub fn of_stage(spec: &ModelSpec, layers: Range<usize>) -> Self {
        let last = layers.end == spec.layers.len();
        let mut cost = Self { weight_bytes: 0, layer_macs: 0, head_macs: 0 };
        for tensor in &spec.tensors {
            // A vector has one row and is not multiplied with; a token passes some of the experts only.
            let read = spec.bytes_per_token(tensor);
            let macs = if tensor.rows > 1 { tensor.rows as u64 * tensor.cols as u64 } else { 0 };
            let macs = macs * read / tensor.bytes.max(1);
            match tensor.role {
                TensorRole::Embedding if spec.head.matrix == HeadMatrix::Own => continue,
                TensorRole::Embedding | TensorRole::Output if last => cost.head_macs += macs,
                TensorRole::Layer(layer, _) if layers.contains(&layer.0) => cost.layer_macs += macs,
                TensorRole::OutputNorm | TensorRole::OutputNormBias if last => {}
                TensorRole::Embedding
                | TensorRole::Output
                | TensorRole::OutputNorm
                | TensorRole::OutputNormBias
                | TensorRole::LayerEmbeddings
                | TensorRole::LayerProjection
                | TensorRole::LayerProjectionNorm
                | TensorRole::RopeFactors
                | TensorRole::RopeFactorsLong
                | TensorRole::RopeFactorsShort
                | TensorRole::Layer(..) => continue,
            }
            cost.weight_bytes += read;
        }
        cost
    }
}

/// BLAKE3 of the file at `path`, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).with_context(|| format!("{}: cannot read", path.display()))?;
    hasher.update_reader(file).with_context(|| format!("{}: cannot read", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Computes `ids` at `position` of `session` and the following ones, in steps of `chunk` rows; the id sampled after the
/// last one.
///
/// # Errors
/// Whatever the shard refuses.
pub fn prefill(shard: &mut Shard, session: u64, position: usize, ids: &[u32], chunk: usize) -> Result<u32> {
    let mut token = 0;
    for (i, ids_of_chunk) in ids.chunks(chunk).enumerate() {
        let start = i * chunk;
        let last = start + ids_of_chunk.len() == ids.len();
        let wants = if last { Wants::Last } else { Wants::None };
        let rows = SequenceRows { session, position: position + start, rows: ids_of_chunk.len(), wants };
        let sampled =
            sampled(shard.step(&Step { sequences: vec![rows], ids: ids_of_chunk.to_vec(), ..Step::default() })?)?;
        token = sampled.first().map_or(token, |row| row.token);
    }
    Ok(token)
}

/// One row each of the sessions 0..`ids.len()`, all at `position`: the ids sampled after them.
///
/// # Errors
/// Whatever the shard refuses.
pub fn decode(shard: &mut Shard, position: usize, ids: Vec<u32>) -> Result<Vec<u32>> {
    let row = |session| SequenceRows { session, position, rows: 1, wants: Wants::Last };
    let step = Step { sequences: (0..ids.len() as u64).map(row).collect(), ids, ..Step::default() };
    Ok(sampled(shard.step(&step)?)?.into_iter().map(|row| row.token).collect())
}

fn sampled(output: StepOutput) -> Result<Vec<SampledRow>> {
    match output {
        StepOutput::Sampled(samples) => Ok(samples.rows.into_iter().collect::<Result<_, _>>()?),
        StepOutput::Hidden(_) => bail!("the shard has no head"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tied_table_is_read_as_the_head() {
        let open = |name: &str| {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");
            BenchModel::open(&Path::new(folder).join(name)).unwrap()
        };
        for name in ["mistral-tied.gguf", "llama.gguf"] {
            let model = open(name);
            let spec = model.spec();
            let all: u64 = spec.tensors.iter().map(|t| t.bytes).sum();
            let table = spec.tensors.iter().find(|t| t.role == TensorRole::Embedding).unwrap();
            let unread = if spec.head.matrix == HeadMatrix::Own { table.bytes } else { 0 };
            let cost = Cost::of(spec);
            assert_eq!(cost.weight_bytes, all - unread, "{name}");
            assert_eq!(cost.head_macs, (spec.vocab * spec.hidden) as u64, "{name}");
            let parts = [0..1, 1..spec.layers.len()].map(|layers| Cost::of_stage(spec, layers));
            assert_eq!(parts[0].weight_bytes + parts[1].weight_bytes, cost.weight_bytes, "{name}");
            assert_eq!((parts[0].head_macs, parts[1].head_macs), (0, cost.head_macs), "{name}");
        }
    }
}
