//! The plain decoder that most families vary: grouped-query attention, then a gated FFN, each after an RMS norm.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    metadata::{HEADS_MAX, Metadata, ROPE_BASE, WIDTH_MAX},
};
use crate::spec::{
    Activation, AttentionSpec, Bias, Ffn, LayerSpec, NormPlacement, QkNorm, Rope, RopePairing, Sinks, Window,
};

const EPS: RangeInclusive<f32> = 1e-12..=0.1;

/// Where plain decoders differ without a key of their own.
pub(super) struct Plain {
    pub(super) pairing: RopePairing,
    /// RoPE base where the file does not say.
    pub(super) rope_base: f32,
    pub(super) activation: Activation,
}

/// ε of all norms.
pub(super) fn norm_eps(m: &Metadata<'_>) -> Result<f32, ModelError> {
    m.float("attention.layer_norm_rms_epsilon", EPS)
}

/// The layers, for the family to change what it does differently.
pub(super) fn layers(m: &Metadata<'_>, plain: &Plain) -> Result<Vec<LayerSpec>, ModelError> {
    let count = m.layer_count()?;
    let inner = m.counts("feed_forward_length", count, 1..=WIDTH_MAX)?;
    let heads = m.counts("attention.head_count", count, 1..=HEADS_MAX)?;
    let kv_heads = kv_heads(m, &heads)?;
    let norm_eps = norm_eps(m)?;
    (0..count)
        .map(|i| {
            let attention = attention(m, plain, heads[i], kv_heads[i])?;
            let ffn = Ffn::Gated { inner: inner[i], activation: plain.activation };
            Ok(LayerSpec { attention, ffn, norms: NormPlacement::Pre, norm_eps })
        })
        .collect()
}

fn attention(m: &Metadata<'_>, plain: &Plain, heads: usize, kv_heads: usize) -> Result<AttentionSpec, ModelError> {
    let head_dim = head_dim(m, heads)?;
    let dims = m.count_or("rope.dimension_count", head_dim, 2..=head_dim)?;
    if !dims.is_multiple_of(2) {
        return Err(m.out_of_range("rope.dimension_count", dims, "an even number".to_owned()));
    }
    let base = m.float_or("rope.freq_base", plain.rope_base, ROPE_BASE)?;
    Ok(AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        soft_cap: None,
        sinks: Sinks::None,
        window: Window::Full,
        rope: Rope { pairing: plain.pairing, dims, base, scaling: m.rope_scaling()? },
        qk_norm: QkNorm::None,
        qkv_bias: Bias::None,
    })
}

/// Key/value heads of each layer: as many as query heads where the file does not say.
fn kv_heads(m: &Metadata<'_>, heads: &[usize]) -> Result<Vec<usize>, ModelError> {
    const KEY: &str = "attention.head_count_kv";
    if !m.has(KEY) {
        return Ok(heads.to_vec());
    }
    let kv_heads = m.counts(KEY, heads.len(), 1..=HEADS_MAX)?;
    match kv_heads.iter().zip(heads).find(|(kv, heads)| !heads.is_multiple_of(**kv)) {
        Some((kv, heads)) => Err(m.out_of_range(KEY, kv, format!("a divisor of the {heads} query heads"))),
        None => Ok(kv_heads),
    }
}

/// Elements per head, for keys and values alike: the hidden width over the heads where the file does not say.
fn head_dim(m: &Metadata<'_>, heads: usize) -> Result<usize, ModelError> {
    let hidden = m.hidden()?;
    if !m.has("attention.key_length") && !hidden.is_multiple_of(heads) {
        return Err(m.out_of_range("attention.head_count", heads, format!("a divisor of the hidden width {hidden}")));
    }
    let head_dim = m.count_or("attention.key_length", hidden / heads, 2..=HEADS_MAX)?;
    let value_dim = m.count_or("attention.value_length", head_dim, 1..=HEADS_MAX)?;
    if value_dim != head_dim {
        return Err(m.unsupported(
            "attention.value_length",
            value_dim.to_string(),
            &format!("the key length {head_dim}"),
        ));
    }
    Ok(head_dim)
}
