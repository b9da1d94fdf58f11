//! Families: each a function from GGUF metadata to layers as data. A new one is a file here and a line in `FAMILIES`.

mod bailingmoe;
mod bailingmoe2;
mod command_r;
mod deepseek;
mod deepseek2;
mod deepseek32;
mod dense;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod error;
mod exaone4;
mod exaone_moe;
mod experts;
mod gated_delta;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4moe;
mod glm_dsa;
mod gpt_oss;
mod granite;
mod granite_hybrid;
mod hunyuan_dense;
mod hunyuan_moe;
mod kimi_linear;
mod latent;
mod llama;
mod llama4;
mod metadata;
mod minimax_m2;
mod minimax_m3;
mod mistral3;
mod mistral4;
mod nemotron_h;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod qwen3next;
mod rope;
mod seed_oss;
mod smollm3;
mod starcoder2;
mod state_space;
mod step35;
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::ModelError;
use self::metadata::Metadata;
use crate::{
    gguf::{Gguf, OptionalKey},
    spec::{HeadMatrix, HeadSpec, LayerInputs, LayerSpec, ModelSpec, NormSpec},
};

/// The names of the architectures that `spec` knows, sorted.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// The model that `gguf` describes, complete: every tensor that its layers need is there, rightly shaped, and no other.
///
/// # Errors
/// What is unknown, missing, out of range or left over, by name.
pub fn spec(gguf: &Gguf) -> Result<ModelSpec, ModelError> {
    if gguf.tensors().is_empty() {
        return Err(ModelError::VocabularyOnly);
    }
    let family = gguf.text("general.architecture")?;
    let &(family, decoder) = FAMILIES.iter().find(|(name, _)| *name == family).ok_or_else(|| ModelError::Family {
        found: family.to_owned(),
        known: known().collect::<Vec<_>>().join(", "),
    })?;
    let metadata = Metadata::new(gguf, family);
    let Decoder { embedding_scale, logit_scale, logit_cap, norm, layer_inputs, layers } = decoder(&metadata)?;
    metadata.check_unread()?;
    let hidden = metadata.hidden()?;
    let vocab = tensors::vocab(&metadata)?;
    let matrix = if metadata.has_tensor(tensors::OUTPUT) { HeadMatrix::Own } else { HeadMatrix::Tied };
    let head = HeadSpec { norm, matrix, soft_cap: logit_cap, logit_scale };
    let tensors = tensors::list(&metadata, [hidden, vocab], &layers, layer_inputs.as_ref(), &head)?;
    Ok(ModelSpec {
        name: name(gguf)?,
        family: family.to_owned(),
        hidden,
        vocab,
        context: metadata.context()?,
        embedding_scale,
        layer_inputs,
        layers,
        head,
        tensors,
    })
}

/// Layers at the end of the file that draft ahead (`nextn_predict_layers`: NextN, multi-token prediction). They are no part of
/// the spec: nobody loads or computes them.
pub fn drafting_layers(gguf: &Gguf) -> usize {
    let Ok(family) = gguf.text("general.architecture") else { return 0 };
    let metadata = Metadata::new(gguf, family);
    metadata.block_count().ok().zip(metadata.layer_count().ok()).map_or(0, |(all, computed)| all - computed)
}

/// What a family's file provides.
type MakeDecoder = fn(&Metadata<'_>) -> Result<Decoder, ModelError>;

/// Each architecture that we know, by its name in `general.architecture`, sorted.
const FAMILIES: &[(&str, MakeDecoder)] = &[
    ("bailingmoe", bailingmoe::decoder),
    ("bailingmoe2", bailingmoe2::decoder),
    ("cohere2", command_r::windowed),
    ("command-r", command_r::decoder),
    ("deepseek", deepseek::decoder),
    ("dots1", dots1::decoder),
    ("ernie4_5", ernie4_5::decoder),
    ("ernie4_5-moe", ernie4_5_moe::decoder),
    ("exaone-moe", exaone_moe::decoder),
    ("exaone4", exaone4::decoder),
    ("gemma", gemma::decoder),
    ("deepseek2", deepseek2::decoder),
    ("deepseek32", deepseek32::decoder),
    ("gemma2", gemma2::decoder),
    ("gemma3", gemma3::decoder),
    ("gemma4", gemma4::decoder),
    ("glm4", glm4::decoder),
    ("glm-dsa", glm_dsa::decoder),
    ("glm4moe", glm4moe::decoder),
    ("gpt-oss", gpt_oss::decoder),
    ("granite", granite::decoder),
    ("granitehybrid", granite_hybrid::decoder),
    ("granitemoe", granite::decoder),
    ("hunyuan-dense", hunyuan_dense::decoder),
    ("hunyuan-moe", hunyuan_moe::decoder),
    ("kimi-linear", kimi_linear::decoder),
    ("llama", llama::decoder),
    ("llama4", llama4::decoder),
    ("minimax-m2", minimax_m2::decoder),
    ("minimax-m3", minimax_m3::decoder),
    ("mistral3", mistral3::decoder),
    ("mistral4", mistral4::decoder),
    ("nemotron_h", nemotron_h::decoder),
    ("nemotron_h_moe", nemotron_h::decoder),
    ("olmo2", olmo2::decoder),
    ("olmoe", olmoe::decoder),
    ("phi3", phi3::decoder),
    ("qwen2", qwen2::decoder),
    ("qwen2moe", qwen2moe::decoder),
    ("qwen3", qwen3::decoder),
    ("qwen35", qwen35::decoder),
    ("qwen35moe", qwen35moe::decoder),
    ("qwen3moe", qwen3moe::decoder),
    ("qwen3next", qwen3next::decoder),
    ("qwen3vl", qwen3::text_of_vision),
    ("qwen3vlmoe", qwen3moe::text_of_vision),
    ("seed_oss", seed_oss::decoder),
    ("smollm3", smollm3::decoder),
    ("starcoder2", starcoder2::decoder),
    ("step35", step35::decoder),
];

/// What a family decides; all else follows from it and from the file.
struct Decoder {
    /// Factor on the embedding row, 1.0 for none.
    embedding_scale: f32,
    /// Factor on the logits, 1.0 for none.
    logit_scale: f32,
    /// Soft cap on the logits.
    logit_cap: Option<f32>,
    /// The norm before the head.
    norm: NormSpec,
    /// What layers take in of a token beside the hidden state.
    layer_inputs: Option<LayerInputs>,
    /// One entry per layer.
    layers: Vec<LayerSpec>,
}

impl Decoder {
    /// Without scales or caps.
    fn plain(norm: NormSpec, layers: Vec<LayerSpec>) -> Self {
        Self { embedding_scale: 1.0, logit_scale: 1.0, logit_cap: None, norm, layer_inputs: None, layers }
    }
}

fn name(gguf: &Gguf) -> Result<String, ModelError> {
    // Nothing depends on it.
    if let Some(name) = gguf.text_lossy("general.name").optional()? {
        return Ok(name.into_owned());
    }
    let stem = gguf.parts().first().and_then(|part| part.path.file_stem());
    Ok(stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned()))
}
