//! Models of random weights in the shapes of published ones, as GGUF files that llama.cpp loads too: for sizes that no
//! registry carries. How fast a dense model computes does not depend on its weights; a mixture's experts are chosen as
//! evenly as chance has it.

pub mod dimensions;
mod latent;
pub mod mixture;
mod vocabulary;

use std::io::{self, Write};

use anyhow::Result;
use qmesh_models::{
    gguf::{Declared, GgufWriter},
    spec::HeadMatrix,
    tensor::TensorType,
};

use self::{
    dimensions::{Dimensions, ExpertCounts, RandomFamily},
    mixture::{TypeMixture, Unquantised},
};
use crate::random_blocks::RandomBlocks;

/// A model that can be written. Its bytes follow from family, dimensions, mixture and seed.
#[derive(Clone, Debug)]
pub struct RandomModel {
    writer: GgufWriter,
    seed: u64,
}

/// The name of a tensor in the file and its elements along each dimension, the innermost first.
type Shaped = (String, Vec<u64>);

impl RandomModel {
    /// The model of these dimensions.
    ///
    /// # Errors
    /// No model of the family has such dimensions.
    pub fn new(family: RandomFamily, dimensions: &Dimensions, mixture: TypeMixture, seed: u64) -> Result<Self> {
        family.check(dimensions)?;
        let mut writer = metadata(family, dimensions)?;
        let name = format!("random {} of {} layers, {mixture}, seed {seed}", family.name(), dimensions.layers);
        writer = writer.set("general.name", name).set("general.quantization_version", 2u32);
        if let Some(number) = mixture.file_type() {
            writer = writer.set("general.file_type", number);
        }
        writer = vocabulary::set(writer, family, dimensions.vocab)?;
        for (name, ne) in tensors(family, dimensions) {
            let dtype = mixture.type_of(Unquantised { name: &name, ne: &ne }, family, dimensions);
            writer = writer.tensor(&name, &ne, dtype);
        }
        Ok(Self { writer, seed })
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.writer.tensors().iter().map(|tensor| tensor.ne.iter().product::<u64>()).sum()
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.writer.file_bytes()
    }

    /// Writes the file, a MiB at a time.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut current = None;
        self.writer.write_in_pieces(out, PIECE_BYTES, |tensor, piece| {
            let random = match &mut current {
                Some((name, random)) if *name == tensor.name => random,
                _ => &mut current.insert((tensor.name.clone(), self.random(&tensor.name))).1,
            };
            fill(tensor, random, piece);
        })
    }

    /// Each tensor's bytes follow from its name: they do not depend on what stands before it.
    fn random(&self, tensor: &str) -> RandomBlocks {
        let hash = blake3::hash(format!("{} {tensor}", self.seed).as_bytes());
        RandomBlocks::new(u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[1; 8])))
    }
}

const PIECE_BYTES: usize = 1 << 20;

/// Gains of norms are 1, everything else is small and random.
fn fill(tensor: &Declared, random: &mut RandomBlocks, piece: &mut [u8]) {
    if tensor.name.ends_with("_norm.weight") {
        piece.as_chunks_mut::<4>().0.fill(1f32.to_le_bytes());
    } else {
        random.fill(tensor.dtype, scale_exponent(tensor.dtype), piece);
    }
}

/// Chosen so that weights are a few hundredths in size, as those of published models are.
fn scale_exponent(dtype: TensorType) -> u16 {
    match dtype {
        TensorType::Q1_0 | TensorType::Q2_0 | TensorType::TQ1_0 | TensorType::TQ2_0 => 5,
        TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::NVFP4 => 6,
        TensorType::MXFP4 => 7,
        TensorType::IQ1S | TensorType::IQ1M => 8,
        TensorType::Q4_0 => 8,
        TensorType::Q4_1 | TensorType::Q5_0 => 9,
        TensorType::Q5_1 | TensorType::Q2K => 10,
        TensorType::IQ4NL | TensorType::Q3K | TensorType::IQ2XXS | TensorType::IQ2XS | TensorType::IQ2S => 11,
        TensorType::Q8_0 | TensorType::IQ3XXS | TensorType::IQ3S => 12,
        TensorType::Q4K | TensorType::Q5K | TensorType::Q6K | TensorType::IQ4XS => 14,
    }
}

/// A file with the keys of the architecture.
fn metadata(family: RandomFamily, d: &Dimensions) -> Result<GgufWriter> {
    let key = |name: &str| format!("{}.{name}", family.name());
    let feed_forward = match (family, d.experts) {
        // What its experts are together.
        (RandomFamily::Qwen3moe, Some(experts)) => d.inner * experts.used,
        _ => d.latent.map_or(d.inner, |latent| latent.dense_inner),
    };
    let (value_length, rotated) = d.latent.map_or((d.head_dim, d.head_dim), |latent| (latent.rank, latent.rope_dim));
    let counts = [
        ("block_count", d.layers),
        ("context_length", d.context),
        ("embedding_length", d.hidden),
        ("feed_forward_length", feed_forward),
        ("attention.head_count", d.heads),
        ("attention.head_count_kv", d.kv_heads),
        ("attention.key_length", d.head_dim),
        ("attention.value_length", value_length),
        ("rope.dimension_count", rotated),
        ("vocab_size", d.vocab),
    ];
    let mut writer = GgufWriter::new(family.name());
    for (name, count) in counts {
        writer = writer.set(&key(name), u32::try_from(count)?);
    }
    writer = writer.set(&key("attention.layer_norm_rms_epsilon"), d.norm_eps).set(&key("rope.freq_base"), d.rope_base);
    if let Some(ExpertCounts { count, used }) = d.experts {
        writer = writer.set(&key("expert_count"), u32::try_from(count)?);
        writer = writer.set(&key("expert_used_count"), u32::try_from(used)?);
        if family != RandomFamily::Llama {
            writer = writer.set(&key("expert_feed_forward_length"), u32::try_from(d.inner)?);
        }
    }
    if let Some(latent) = &d.latent {
        writer = latent::metadata(writer, family.name(), latent)?;
    }
    if family == RandomFamily::GptOss {
        writer = writer.set(&key("attention.sliding_window"), 128u32).set(&key("rope.scaling.type"), "yarn");
        writer = writer.set(&key("rope.scaling.factor"), 32.0f32);
        writer = writer.set(&key("rope.scaling.original_context_length"), 4096u32);
    }
    Ok(writer)
}

fn tensors(family: RandomFamily, d: &Dimensions) -> Vec<Shaped> {
    let (hidden, vocab) = (d.hidden as u64, d.vocab as u64);
    let mut all = vec![("token_embd.weight".into(), vec![hidden, vocab]), ("output_norm.weight".into(), vec![hidden])];
    if d.head == HeadMatrix::Own {
        all.push(("output.weight".into(), vec![hidden, vocab]));
    }
    for layer in 0..d.layers {
        let places = match (&d.latent, d.experts) {
            (Some(latent), Some(experts)) => {
                [latent::attention(d, latent), latent::feed_forward(d, latent, experts, layer)].concat()
            }
            _ => [attention(family, d), feed_forward(family, d)].concat(),
        };
        let places = places.into_iter();
        all.extend(places.map(|(place, ne)| (format!("blk.{layer}.{place}"), ne)));
    }
    all
}

fn attention(family: RandomFamily, d: &Dimensions) -> Vec<(&'static str, Vec<u64>)> {
    let [hidden, heads, kv_heads, head_dim] = [d.hidden, d.heads, d.kv_heads, d.head_dim].map(|count| count as u64);
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut places = vec![
        ("attn_norm.weight", vec![hidden]),
        ("attn_q.weight", vec![hidden, q]),
        ("attn_k.weight", vec![hidden, kv]),
        ("attn_v.weight", vec![hidden, kv]),
        ("attn_output.weight", vec![q, hidden]),
    ];
    let biases = [("attn_q.bias", vec![q]), ("attn_k.bias", vec![kv]), ("attn_v.bias", vec![kv])];
    match family {
        RandomFamily::Llama | RandomFamily::Deepseek2 | RandomFamily::Deepseek32 => {}
        RandomFamily::Qwen2 => places.extend(biases),
        RandomFamily::Qwen3 | RandomFamily::Qwen3moe => {
            places.extend([("attn_q_norm.weight", vec![head_dim]), ("attn_k_norm.weight", vec![head_dim])]);
        }
        RandomFamily::GptOss => {
            places.extend(biases);
            places.extend([("attn_output.bias", vec![hidden]), ("attn_sinks.weight", vec![heads])]);
        }
    }
    places
}

fn feed_forward(family: RandomFamily, d: &Dimensions) -> Vec<(&'static str, Vec<u64>)> {
    let (hidden, inner) = (d.hidden as u64, d.inner as u64);
    let norm = if family == RandomFamily::GptOss { "post_attention_norm.weight" } else { "ffn_norm.weight" };
    let mut places = vec![(norm, vec![hidden])];
    let Some(ExpertCounts { count, .. }) = d.experts else {
        places.extend([
            ("ffn_gate.weight", vec![hidden, inner]),
            ("ffn_up.weight", vec![hidden, inner]),
            ("ffn_down.weight", vec![inner, hidden]),
        ]);
        return places;
    };
    let count = count as u64;
    places.extend([
        ("ffn_gate_inp.weight", vec![hidden, count]),
        ("ffn_gate_exps.weight", vec![hidden, inner, count]),
        ("ffn_up_exps.weight", vec![hidden, inner, count]),
        ("ffn_down_exps.weight", vec![inner, hidden, count]),
    ]);
    if family == RandomFamily::GptOss {
        places.extend([
            ("ffn_gate_inp.bias", vec![count]),
            ("ffn_gate_exps.bias", vec![inner, count]),
            ("ffn_up_exps.bias", vec![inner, count]),
            ("ffn_down_exps.bias", vec![hidden, count]),
        ]);
    }
    places
}

#[cfg(test)]
mod tests {
    use qmesh_models::{family, gguf::Gguf};

    use super::*;

    #[test]
    fn sizes_have_as_many_parameters_as_published() {
        let published = [
            (RandomFamily::Llama, "1B", 1_235_814_400),
            (RandomFamily::Llama, "7B", 6_738_415_616),
            (RandomFamily::Llama, "8B", 8_030_261_248),
            (RandomFamily::Llama, "8x7B", 46_702_792_704),
            (RandomFamily::Llama, "70B", 70_553_706_496),
            (RandomFamily::Qwen2, "0.5B", 494_032_768),
            (RandomFamily::Qwen2, "1.5B", 1_543_714_304),
            (RandomFamily::Qwen2, "7B", 7_615_616_512),
            (RandomFamily::Qwen2, "72B", 72_706_203_648),
            (RandomFamily::Qwen3, "0.6B", 596_049_920),
            (RandomFamily::Qwen3, "8B", 8_190_735_360),
            (RandomFamily::Qwen3moe, "30B", 30_532_122_624),
            (RandomFamily::GptOss, "20B", 20_914_757_184),
            (RandomFamily::GptOss, "120B", 116_829_156_672),
            (RandomFamily::Deepseek2, "16B", 15_706_484_224),
            (RandomFamily::Deepseek2, "236B", 235_741_434_880),
            (RandomFamily::Deepseek2, "671B", 671_026_419_200),
            (RandomFamily::Deepseek32, "671B", 671_877_944_064),
        ];
        for (family, size, parameters) in published {
            let dimensions = family.size(size).unwrap();
            let model = RandomModel::new(family, &dimensions, TypeMixture::Q4KM, 1).unwrap();
            assert_eq!(model.parameters(), parameters, "{} {size}", family.name());
            // Our own reader takes the header: every tensor is there, rightly shaped, and no other.
            let gguf = Gguf::parse(&model.writer.header(), model.file_bytes()).unwrap();
            let spec = family::spec(&gguf).unwrap();
            assert_eq!(spec.tensors.iter().map(|t| (t.rows * t.cols) as u64).sum::<u64>(), parameters);
            assert_eq!(
                (spec.family.as_str(), spec.layers.len(), spec.context),
                (family.name(), dimensions.layers, dimensions.context)
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_file() {
        let mut dimensions = RandomFamily::Qwen2.size("0.5B").unwrap();
        (dimensions.layers, dimensions.vocab, dimensions.inner) = (2, 512, 256);
        let bytes = |seed| {
            let mut out = Vec::new();
            RandomModel::new(RandomFamily::Qwen2, &dimensions, TypeMixture::Q4KM, seed)
                .unwrap()
                .write(&mut out)
                .unwrap();
            out
        };
        assert!(bytes(1) == bytes(1) && bytes(1) != bytes(2));
    }
}
