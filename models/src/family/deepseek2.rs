//! DeepSeek V2 and V3, and what is built like them (R1, Kimi K2, GLM 4.7 Flash): latent attention; the first layers dense, the
//! others with experts and one that every token goes through.

use super::{Decoder, ModelError, dense, experts, latent, metadata::Metadata, tensors};
use crate::spec::{Activation, Bias, ExpertsSpec, Ffn, LayerSpec, Mixer, NormPlacement, OutputScale, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let (norm, count) = (dense::rms_norm(m)?, m.layer_count()?);
    let attention = latent::spec(m)?;
    let dense_layers = m.count_or("leading_dense_block_count", 0, 0..=count)?;
    let inner = dense::inner(m)?;
    let mixture = if dense_layers < count { Some(mixture(m)?) } else { None };
    let ffn = |layer: usize| match &mixture {
        Some(mixture) if layer >= dense_layers => Ffn::Experts(experts::in_layer(m, mixture, layer)),
        Some(_) | None => Ffn::Gated { inner: inner[layer], activation: Activation::Silu, bias: Bias::None },
    };
    let layer = |layer: usize| LayerSpec {
        mixer: Mixer::Latent(attention.clone()),
        ffn: ffn(layer),
        norms: NormPlacement::Pre,
        norm,
        residual_scale: 1.0,
        output_scale: OutputScale::None,
    };
    Ok(Decoder::plain(norm, (0..count).map(layer).collect()))
}

fn mixture(m: &Metadata<'_>) -> Result<ExpertsSpec, ModelError> {
    // What the first files of GLM 4.7 Flash, told by their size as llama.cpp tells them, and those of DeepSeek V2 do not say.
    let is_glm = matches!(m.layer_count()?, 47 | 48) && tensors::vocab(m)? == 154_880;
    let default = if is_glm { Scoring::Sigmoid } else { Scoring::Softmax };
    let mut mixture = experts::as_said(m, Activation::Silu, default)?;
    mixture.shared = experts::shared_by_count(m, mixture.inner)?;
    Ok(mixture)
}
