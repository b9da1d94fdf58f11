//! `qmesh-bench synth`: writes a model of random weights in the shape of a published one.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use qmesh_models::bytes::ByteCount;

use crate::{
    options::positive,
    random_model::{
        RandomModel,
        dimensions::{Dimensions, ExpertCounts, RandomFamily},
        mixture::TypeMixture,
    },
};

/// Options of `synth`.
#[derive(Args, Debug)]
pub struct SynthOptions {
    /// What kind of model.
    family: RandomFamily,
    /// A published size, such as 0.5B or 70B; by default the family's smallest. The options below change it.
    #[arg(long, value_name = "SIZE")]
    params: Option<String>,
    #[command(flatten)]
    changes: Changes,
    /// What it is quantised to: Q4_K_M, MXFP4_MOE, or one type for every matrix.
    #[arg(long = "type", value_name = "TYPE", default_value_t = TypeMixture::Q4KM)]
    mixture: TypeMixture,
    /// What the weights follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The file to write; one that is there already is not replaced.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// What is other than in the published size.
#[derive(Args, Clone, Copy, Debug)]
struct Changes {
    /// Layers.
    #[arg(long, value_parser = positive)]
    layers: Option<usize>,
    /// Width of the hidden state.
    #[arg(long, value_parser = positive)]
    hidden: Option<usize>,
    /// Width between the products of the FFN, or of one expert.
    #[arg(long, value_parser = positive)]
    inner: Option<usize>,
    /// Query heads.
    #[arg(long, value_parser = positive)]
    heads: Option<usize>,
    /// Key/value heads.
    #[arg(long, value_parser = positive)]
    kv_heads: Option<usize>,
    /// Elements per head.
    #[arg(long, value_parser = positive)]
    head_dim: Option<usize>,
    /// Tokens of the vocabulary.
    #[arg(long, value_parser = positive)]
    vocab: Option<usize>,
    /// Experts of a layer.
    #[arg(long, value_parser = positive)]
    experts: Option<usize>,
    /// Experts that a token goes through.
    #[arg(long, value_parser = positive)]
    experts_used: Option<usize>,
}

/// Writes the model that is asked for.
///
/// # Errors
/// Says which option or file is to blame.
pub fn run(options: &SynthOptions) -> Result<()> {
    let model = RandomModel::new(options.family, &options.dimensions()?, options.mixture, options.seed)?;
    let path = &options.out;
    ensure!(!path.exists(), "--out {}: there is a file already", path.display());
    let (parameters, bytes) = (model.parameters() as f64 / 1e9, ByteCount(model.file_bytes()));
    eprintln!("{}: {parameters:.2} billion parameters, {bytes}", path.display());
    // Under another name until it is whole.
    let mut unfinished = path.clone().into_os_string();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let written = fs::File::create(&unfinished).and_then(|mut file| {
        model.write(&mut file)?;
        file.flush()?;
        fs::rename(&unfinished, path)
    });
    if written.is_err() {
        // What went wrong before matters more.
        let _left = fs::remove_file(&unfinished);
    }
    written.with_context(|| format!("--out {}", path.display()))
}

impl SynthOptions {
    fn dimensions(&self) -> Result<Dimensions> {
        let Changes { layers, hidden, inner, heads, kv_heads, head_dim, vocab, experts, experts_used } = self.changes;
        let size = match &self.params {
            Some(name) => self.family.size(name)?,
            None => self.family.sizes().first().context("a family without sizes")?.1,
        };
        let experts = match (size.experts, experts, experts_used) {
            (None, None, None) => None,
            (None, Some(count), Some(used)) => Some(ExpertCounts { count, used }),
            (None, _, _) => bail!("give --experts and --experts-used, or none of them"),
            (Some(published), count, used) => {
                let count = count.unwrap_or(published.count);
                Some(ExpertCounts { count, used: used.unwrap_or(published.used.min(count)) })
            }
        };
        Ok(Dimensions {
            layers: layers.unwrap_or(size.layers),
            hidden: hidden.unwrap_or(size.hidden),
            inner: inner.unwrap_or(size.inner),
            heads: heads.unwrap_or(size.heads),
            kv_heads: kv_heads.unwrap_or(size.kv_heads),
            head_dim: head_dim.unwrap_or(size.head_dim),
            vocab: vocab.unwrap_or(size.vocab),
            experts,
            ..size
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use qmesh_models::spec::TensorRole;

    use super::*;
    use crate::model::{self, BenchModel};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: SynthOptions,
    }

    fn synth(arguments: &str, out: &std::path::Path) -> Result<()> {
        let arguments = ["synth"].into_iter().chain(arguments.split_whitespace());
        run(&Cli::try_parse_from(arguments.chain(["--out", out.to_str().unwrap()]))?.options)
    }

    #[test]
    fn what_is_written_is_read_and_computes() {
        let folder = tempfile::tempdir().unwrap();
        let small = "--layers 2 --hidden 256 --heads 4 --inner 512 --vocab 600";
        let grouped = " --kv-heads 2 --head-dim 64";
        for (arguments, experts) in [
            ("llama --params 8B", None),
            ("llama --params 8x7B --type q8_0", Some(8)),
            ("qwen2 --type IQ4_XS", None),
            ("qwen3 --params 8B --type IQ2_XXS", None),
            ("qwen3moe --experts 16 --type NVFP4", Some(16)),
            ("qwen3 --params 8B --type Q5_K", None),
            ("qwen3moe --experts 16", Some(16)),
            ("gpt-oss --experts 8 --type MXFP4_MOE", Some(8)),
            ("deepseek2 --experts 8", Some(8)),
        ] {
            let path = folder.path().join(arguments.replace(' ', "_"));
            let grouped = if arguments.starts_with("deepseek2") { "" } else { grouped };
            synth(&format!("{arguments} {small}{grouped}"), &path).unwrap();
            let model = BenchModel::open(&path).unwrap();
            let spec = model.spec();
            assert_eq!((spec.layers.len(), spec.hidden, spec.vocab), (2, 256, 600), "{arguments}");
            let found = spec.layers[1].ffn.experts().map(|experts| experts.count);
            assert_eq!(found, experts, "{arguments}");
            assert!(spec.tensors.iter().any(|tensor| tensor.role == TensorRole::OutputNorm));
            let (mut shard, _) = model.load(1, 64, 1).unwrap();
            let token = model::prefill(&mut shard, 0, 0, &model.prompt(0, 5), 5).unwrap();
            let next = model::decode(&mut shard, 5, vec![token]).unwrap();
            assert!(next[0] < 600, "{arguments}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        for (arguments, says) in [
            ("llama --params 9B", "known: 1B, 3B, 7B, 8B"),
            ("llama --experts 4", "--experts-used"),
            ("qwen2 --experts 4 --experts-used 2", "has no experts"),
            ("qwen3 --vocab 300", "at least 512 tokens"),
            ("deepseek2 --kv-heads 2", "has no key/value heads"),
            ("qwen3 --type Q9_K", "no such type"),
        ] {
            let error = synth(arguments, &path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        fs::write(&path, "mine").unwrap();
        let small = "llama --layers 1 --hidden 64 --heads 1 --kv-heads 1 --inner 64 --vocab 512";
        assert!(synth(small, &path).unwrap_err().to_string().contains("already"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
