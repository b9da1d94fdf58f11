//! Families: each a function from GGUF metadata to layers as data. A new one is a file here and a line in `FAMILIES`.

mod dense;
mod error;
mod gated_delta;
mod gemma2;
mod gemma3;
mod glm4;
mod gpt_oss;
mod granite;
mod granite_hybrid;
mod llama;
mod metadata;
mod olmo2;
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
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::ModelError;
use self::metadata::Metadata;
use crate::{
    gguf::{Gguf, OptionalKey},
    spec::{HeadMatrix, HeadSpec, LayerSpec, ModelSpec, NormSpec},
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
    let Decoder { embedding_scale, logit_scale, logit_cap, norm, layers } = decoder(&metadata)?;
    metadata.check_unread()?;
    let hidden = metadata.hidden()?;
    let vocab = tensors::vocab(&metadata)?;
    let matrix = if metadata.has_tensor(tensors::OUTPUT) { HeadMatrix::Own } else { HeadMatrix::Tied };
    let head = HeadSpec { norm, matrix, soft_cap: logit_cap, logit_scale };
    let tensors = tensors::list(gguf, hidden, vocab, &layers, &head)?;
    Ok(ModelSpec {
        name: name(gguf)?,
        family: family.to_owned(),
        hidden,
        vocab,
        context: metadata.context()?,
        embedding_scale,
        layers,
        head,
        tensors,
    })
}

/// What a family's file provides.
type MakeDecoder = fn(&Metadata<'_>) -> Result<Decoder, ModelError>;

/// Each architecture that we know, by its name in `general.architecture`, sorted.
const FAMILIES: &[(&str, MakeDecoder)] = &[
    ("gemma2", gemma2::decoder),
    ("gemma3", gemma3::decoder),
    ("glm4", glm4::decoder),
    ("gpt-oss", gpt_oss::decoder),
    ("granite", granite::decoder),
    ("granitehybrid", granite_hybrid::decoder),
    ("llama", llama::decoder),
    ("olmo2", olmo2::decoder),
    ("phi3", phi3::decoder),
    ("qwen2", qwen2::decoder),
    ("qwen2moe", qwen2moe::decoder),
    ("qwen3", qwen3::decoder),
    ("qwen35", qwen35::decoder),
    ("qwen35moe", qwen35moe::decoder),
    ("qwen3moe", qwen3moe::decoder),
    ("qwen3next", qwen3next::decoder),
    ("seed_oss", seed_oss::decoder),
    ("smollm3", smollm3::decoder),
    ("starcoder2", starcoder2::decoder),
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
    /// One entry per layer.
    layers: Vec<LayerSpec>,
}

impl Decoder {
    /// Without scales or caps.
    fn plain(norm: NormSpec, layers: Vec<LayerSpec>) -> Self {
        Self { embedding_scale: 1.0, logit_scale: 1.0, logit_cap: None, norm, layers }
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
