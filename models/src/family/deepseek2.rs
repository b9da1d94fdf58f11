//! DeepSeek V2 and V3, and what is built like them (R1, Kimi K2, GLM 4.7 Flash): latent attention; the first layers dense, the
//! others with experts and one that every token goes through.

use super::{Decoder, ModelError, dense, experts, latent, metadata::Metadata, tensors};
use crate::spec::{Activation, Ffn, LayerSpec, Mixer, NormPlacement, OutputScale, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    // What the first files of GLM 4.7 Flash, told by their size as llama.cpp tells them, and those of DeepSeek V2 do not say.
    let is_glm = matches!(m.layer_count()?, 47 | 48) && tensors::vocab(m)? == 154_880;
    let default = if is_glm { Scoring::Sigmoid } else { Scoring::Softmax };
    let mixers = vec![Mixer::Latent(latent::spec(m)?); m.layer_count()?];
    layers(m, mixers, ffns(m, default)?)
}

/// The feed-forward halves, whose experts are chosen as the file says, by `default` where it does not say how they are scored.
pub(super) fn ffns(m: &Metadata<'_>, default: Scoring) -> Result<Vec<Ffn>, ModelError> {
    experts::behind_dense(m, Activation::Silu, || {
        let mut mixture = experts::as_said(m, Activation::Silu, default)?;
        mixture.shared = experts::shared_by_count(m, mixture.inner, mixture.activation)?;
        Ok(mixture)
    })
}

/// Layers of these halves, each behind an RMS norm.
pub(super) fn layers(m: &Metadata<'_>, mixers: Vec<Mixer>, ffns: Vec<Ffn>) -> Result<Decoder, ModelError> {
    let norm = dense::rms_norm(m)?;
    let layer = |(mixer, ffn)| LayerSpec {
        mixer,
        ffn,
        norms: NormPlacement::Pre,
        norm,
        residual_scale: 1.0,
        output_scale: OutputScale::None,
    };
    Ok(Decoder::plain(norm, mixers.into_iter().zip(ffns).map(layer).collect()))
}
