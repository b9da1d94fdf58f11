//! Families: each a function from GGUF metadata to layers as data. A new one is a file here and a line in `FAMILIES`.

mod dense;
mod error;
mod gemma2;
mod gemma3;
mod llama;
mod metadata;
mod qwen2;
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::ModelError;
use self::metadata::Metadata;
use crate::{
    gguf::{Gguf, OptionalKey},
    spec::{HeadMatrix, HeadSpec, LayerSpec, ModelSpec},
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
    let Decoder { embedding_scale, norm_eps, logit_cap, layers } = decoder(&metadata)?;
    metadata.check_unread()?;
    let hidden = metadata.hidden()?;
    let vocab = tensors::vocab(&metadata)?;
    let matrix = if metadata.has_tensor(tensors::OUTPUT) { HeadMatrix::Own } else { HeadMatrix::Tied };
    let tensors = tensors::list(gguf, hidden, vocab, &layers, matrix)?;
    Ok(ModelSpec {
        name: name(gguf)?,
        family: family.to_owned(),
        hidden,
        vocab,
        context: metadata.context()?,
        embedding_scale,
        layers,
        head: HeadSpec { norm_eps, matrix, soft_cap: logit_cap },
        tensors,
    })
}

/// What a family's file provides.
type MakeDecoder = fn(&Metadata<'_>) -> Result<Decoder, ModelError>;

/// Each architecture that we know, by its name in `general.architecture`, sorted.
const FAMILIES: &[(&str, MakeDecoder)] =
    &[("gemma2", gemma2::decoder), ("gemma3", gemma3::decoder), ("llama", llama::decoder), ("qwen2", qwen2::decoder)];

/// What a family decides; all else follows from it and from the file.
struct Decoder {
    /// Factor on the embedding row, 1.0 for none.
    embedding_scale: f32,
    /// ε of the norm before the head.
    norm_eps: f32,
    /// Soft cap on the logits.
    logit_cap: Option<f32>,
    /// One entry per layer.
    layers: Vec<LayerSpec>,
}

fn name(gguf: &Gguf) -> Result<String, ModelError> {
    if let Some(name) = gguf.text("general.name").optional()? {
        return Ok(name.to_owned());
    }
    let stem = gguf.parts().first().and_then(|part| part.path.file_stem());
    Ok(stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned()))
}
