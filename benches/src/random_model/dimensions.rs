//! The shapes of published models, by family and size.

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use qmesh_models::spec::HeadMatrix;

/// A family that random models can be made of, by its name in GGUF.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum RandomFamily {
    /// Llama 2 and 3, and with experts Mixtral.
    Llama,
    /// Qwen 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3moe,
    /// gpt-oss, with experts.
    GptOss,
    /// DeepSeek V2 and V3, with latent attention and experts.
    Deepseek2,
    /// DeepSeek V3.2: the same to the positions that an indexer chooses.
    Deepseek32,
}

/// The numbers that a model's tensors and metadata follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dimensions {
    /// Layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Width between the products of the FFN, or of one expert.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Positions that the model is made for.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// ε of the norms.
    pub norm_eps: f32,
    /// Whether the head has a matrix of its own.
    pub head: HeadMatrix,
    /// Experts of a layer; `None` where it has one FFN.
    pub experts: Option<ExpertCounts>,
    /// What only models with latent attention have; `None` for all others.
    pub latent: Option<LatentDimensions>,
}

/// The numbers of a model with latent attention, which has no key/value heads, and of the layers that go with it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LatentDimensions {
    /// Elements of the queries' latent; 0 where queries have none.
    pub query_rank: usize,
    /// Elements of the latent.
    pub rank: usize,
    /// Elements of a query that are not rotated.
    pub plain_dim: usize,
    /// Elements of a query that are.
    pub rope_dim: usize,
    /// Elements of a head's output.
    pub value_dim: usize,
    /// The first layers, which have one FFN.
    pub dense_layers: usize,
    /// Width of that.
    pub dense_inner: usize,
    /// Experts that every token goes through, as one.
    pub shared: usize,
    /// How experts are chosen.
    pub choice: ExpertChoice,
    /// What chooses positions; `None` where all are attended to.
    pub indexer: Option<IndexerDimensions>,
}

/// The numbers of an indexer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IndexerDimensions {
    /// Heads that score.
    pub heads: usize,
    /// Elements of each.
    pub head_dim: usize,
    /// Positions that are chosen.
    pub used: usize,
}

/// How DeepSeek's experts are chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExpertChoice {
    /// By a softmax over all (V2).
    Softmax,
    /// By a sigmoid of each and a bias, from the best 4 of 8 groups, with weights that sum to 2.5 (V3).
    Grouped,
}

/// How many experts a layer has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExpertCounts {
    /// All of them.
    pub count: usize,
    /// Those that a token goes through.
    pub used: usize,
}

impl RandomFamily {
    /// Its name in `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen3moe => "qwen3moe",
            Self::GptOss => "gpt-oss",
            Self::Deepseek2 => "deepseek2",
            Self::Deepseek32 => "deepseek32",
        }
    }

    /// Its published sizes by their names, the smallest first.
    pub fn sizes(self) -> Vec<(&'static str, Dimensions)> {
        match self {
            Self::Llama => llama(),
            Self::Qwen2 => qwen2(),
            Self::Qwen3 => qwen3(),
            Self::Qwen3moe => vec![
                ("30B", experts(QWEN3_MOE, [48, 2048, 768, 32, 4, 128], 128, 8)),
                ("235B", experts(QWEN3_MOE, [94, 4096, 1536, 64, 4, 128], 128, 8)),
            ],
            Self::GptOss => vec![
                ("20B", experts(GPT_OSS, [24, 2880, 2880, 64, 8, 64], 32, 4)),
                ("120B", experts(GPT_OSS, [36, 2880, 2880, 64, 8, 64], 128, 4)),
            ],
            Self::Deepseek2 => deepseek2(),
            Self::Deepseek32 => vec![("671B", latents([61, 7168, 2048, 128], [256, 8], 129_280, V32))],
        }
    }

    /// The published size of that name, in whatever case.
    ///
    /// # Errors
    /// Names those that are known.
    pub fn size(self, name: &str) -> Result<Dimensions> {
        let sizes = self.sizes();
        let known = sizes.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, dimensions)| *dimensions);
        known.with_context(|| {
            let names: Vec<_> = sizes.iter().map(|(name, _)| *name).collect();
            format!("--params {name}: {} has no such size; known: {}", self.name(), names.join(", "))
        })
    }

    /// Whether `dimensions` are those of a model of the family.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(self, dimensions: &Dimensions) -> Result<()> {
        let Dimensions { heads, kv_heads, head_dim, experts, latent, .. } = *dimensions;
        if let Some(LatentDimensions { rank, value_dim, rope_dim, .. }) = latent {
            let published = (kv_heads, head_dim) == (1, rank + rope_dim);
            ensure!(published, "{} has no key/value heads, and its heads are as wide as they are", self.name());
            ensure!(
                rank.is_multiple_of(16) && value_dim.is_multiple_of(16),
                "heads' matrices have whole groups of rows"
            );
        }
        ensure!(heads.is_multiple_of(kv_heads), "{heads} query heads cannot share {kv_heads} key/value heads evenly");
        ensure!(head_dim.is_multiple_of(2), "a head of {head_dim} elements cannot be rotated in pairs");
        match (self, experts) {
            (Self::Qwen2 | Self::Qwen3, Some(_)) => anyhow::bail!("{} has no experts", self.name()),
            (Self::Qwen3moe | Self::GptOss | Self::Deepseek2 | Self::Deepseek32, None) => {
                anyhow::bail!("{} has experts", self.name())
            }
            (_, Some(ExpertCounts { count, used })) => {
                ensure!(used <= count, "a token cannot go through {used} of {count} experts");
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }
}

/// What all sizes of a family have in common; their widths are put in for the zeros.
const NO_WIDTHS: Dimensions = Dimensions {
    layers: 0,
    hidden: 0,
    inner: 0,
    heads: 0,
    kv_heads: 0,
    head_dim: 0,
    vocab: 0,
    context: 0,
    rope_base: 1e6,
    norm_eps: 1e-6,
    head: HeadMatrix::Own,
    experts: None,
    latent: None,
};
const LLAMA2: Dimensions =
    Dimensions { vocab: 32_000, context: 4096, rope_base: 10_000.0, norm_eps: 1e-5, ..NO_WIDTHS };
const LLAMA3: Dimensions =
    Dimensions { vocab: 128_256, context: 131_072, rope_base: 500_000.0, norm_eps: 1e-5, ..NO_WIDTHS };
const MIXTRAL: Dimensions = Dimensions { vocab: 32_000, context: 32_768, norm_eps: 1e-5, ..NO_WIDTHS };
const QWEN2: Dimensions = Dimensions { vocab: 152_064, context: 32_768, ..NO_WIDTHS };
const QWEN3: Dimensions = Dimensions { vocab: 151_936, context: 40_960, ..NO_WIDTHS };
const QWEN3_MOE: Dimensions = Dimensions { vocab: 151_936, context: 40_960, ..NO_WIDTHS };
const GPT_OSS: Dimensions =
    Dimensions { vocab: 201_088, context: 131_072, rope_base: 150_000.0, norm_eps: 1e-5, ..NO_WIDTHS };
const DEEPSEEK: Dimensions = Dimensions { context: 163_840, rope_base: 10_000.0, ..NO_WIDTHS };

fn llama() -> Vec<(&'static str, Dimensions)> {
    vec![
        ("1B", tied(dense(LLAMA3, [16, 2048, 8192, 32, 8, 64]))),
        ("3B", tied(dense(LLAMA3, [28, 3072, 8192, 24, 8, 128]))),
        ("7B", dense(LLAMA2, [32, 4096, 11_008, 32, 32, 128])),
        ("8B", dense(LLAMA3, [32, 4096, 14_336, 32, 8, 128])),
        ("13B", dense(LLAMA2, [40, 5120, 13_824, 40, 40, 128])),
        ("8x7B", experts(MIXTRAL, [32, 4096, 14_336, 32, 8, 128], 8, 2)),
        ("70B", dense(LLAMA3, [80, 8192, 28_672, 64, 8, 128])),
        ("405B", dense(LLAMA3, [126, 16_384, 53_248, 128, 8, 128])),
    ]
}

fn qwen2() -> Vec<(&'static str, Dimensions)> {
    // The small ones have a smaller vocabulary, and no matrix of their own for the head.
    let small = |widths| Dimensions { vocab: 151_936, ..tied(dense(QWEN2, widths)) };
    vec![
        ("0.5B", small([24, 896, 4864, 14, 2, 64])),
        ("1.5B", small([28, 1536, 8960, 12, 2, 128])),
        ("3B", small([36, 2048, 11_008, 16, 2, 128])),
        ("7B", dense(QWEN2, [28, 3584, 18_944, 28, 4, 128])),
        ("14B", dense(QWEN2, [48, 5120, 13_824, 40, 8, 128])),
        ("32B", dense(QWEN2, [64, 5120, 27_648, 40, 8, 128])),
        ("72B", dense(QWEN2, [80, 8192, 29_568, 64, 8, 128])),
    ]
}

const V2_LITE: LatentDimensions = LatentDimensions {
    query_rank: 0,
    rank: 512,
    plain_dim: 128,
    rope_dim: 64,
    value_dim: 128,
    dense_layers: 1,
    dense_inner: 10_944,
    shared: 2,
    choice: ExpertChoice::Softmax,
    indexer: None,
};
const V2: LatentDimensions = LatentDimensions { query_rank: 1536, dense_inner: 12_288, ..V2_LITE };
const V3: LatentDimensions =
    LatentDimensions { dense_layers: 3, dense_inner: 18_432, shared: 1, choice: ExpertChoice::Grouped, ..V2 };
const V32: LatentDimensions =
    LatentDimensions { indexer: Some(IndexerDimensions { heads: 64, head_dim: 128, used: 2048 }), ..V3 };

fn deepseek2() -> Vec<(&'static str, Dimensions)> {
    vec![
        ("16B", latents([27, 2048, 1408, 16], [64, 6], 102_400, V2_LITE)),
        ("236B", latents([60, 5120, 1536, 128], [160, 6], 102_400, V2)),
        ("671B", latents([61, 7168, 2048, 128], [256, 8], 129_280, V3)),
    ]
}

/// Layers, hidden width, inner width and query heads, which all share one key as wide as the latent and the rotated part; experts
/// and those that a token goes through.
fn latents(
    [layers, hidden, inner, heads]: [usize; 4],
    [count, used]: [usize; 2],
    vocab: usize,
    latent: LatentDimensions,
) -> Dimensions {
    let all = [layers, hidden, inner, heads, 1, latent.rank + latent.rope_dim];
    Dimensions { vocab, latent: Some(latent), ..experts(DEEPSEEK, all, count, used) }
}

fn qwen3() -> Vec<(&'static str, Dimensions)> {
    vec![
        ("0.6B", tied(dense(QWEN3, [28, 1024, 3072, 16, 8, 128]))),
        ("1.7B", tied(dense(QWEN3, [28, 2048, 6144, 16, 8, 128]))),
        ("4B", tied(dense(QWEN3, [36, 2560, 9728, 32, 8, 128]))),
        ("8B", dense(QWEN3, [36, 4096, 12_288, 32, 8, 128])),
        ("14B", dense(QWEN3, [40, 5120, 17_408, 40, 8, 128])),
        ("32B", dense(QWEN3, [64, 5120, 25_600, 64, 8, 128])),
    ]
}

/// Layers, hidden width, inner width, query heads, key/value heads, elements per head.
fn dense(family: Dimensions, [layers, hidden, inner, heads, kv_heads, head_dim]: [usize; 6]) -> Dimensions {
    Dimensions { layers, hidden, inner, heads, kv_heads, head_dim, ..family }
}

fn experts(family: Dimensions, widths: [usize; 6], count: usize, used: usize) -> Dimensions {
    Dimensions { experts: Some(ExpertCounts { count, used }), ..dense(family, widths) }
}

fn tied(dimensions: Dimensions) -> Dimensions {
    Dimensions { head: HeadMatrix::Tied, ..dimensions }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_found_by_name() {
        assert_eq!(RandomFamily::Llama.size("8x7b").unwrap().experts, Some(ExpertCounts { count: 8, used: 2 }));
        let error = RandomFamily::Qwen3.size("7B").unwrap_err().to_string();
        assert_eq!(error, "--params 7B: qwen3 has no such size; known: 0.6B, 1.7B, 4B, 8B, 14B, 32B");
    }

    #[test]
    fn every_size_is_one_of_its_family() {
        for family in RandomFamily::value_variants() {
            for (name, dimensions) in family.sizes() {
                assert!(family.check(&dimensions).is_ok(), "{} {name}", family.name());
            }
        }
        let dense = RandomFamily::Qwen3.size("8B").unwrap();
        let with = |count, used| Dimensions { experts: Some(ExpertCounts { count, used }), ..dense };
        assert!(RandomFamily::Qwen3.check(&with(4, 2)).is_err() && RandomFamily::Qwen3moe.check(&dense).is_err());
        assert!(RandomFamily::Llama.check(&with(4, 4)).is_ok() && RandomFamily::Llama.check(&with(4, 5)).is_err());
        assert!(RandomFamily::Llama.check(&Dimensions { kv_heads: 5, ..dense }).is_err());
        assert!(RandomFamily::Llama.check(&Dimensions { head_dim: 63, ..dense }).is_err());
    }
}
