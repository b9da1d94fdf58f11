//! The plain decoder that most families vary: grouped-query attention, then a feed-forward half, each after a norm.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    metadata::{CONTEXT_MAX, HEADS_MAX, LAYERS_MAX, Metadata, ROPE_BASE, WIDTH_MAX},
    rope,
};
use crate::spec::{
    Activation, AttentionSpec, Bias, Ffn, KvSource, LayerSpec, Mixer, NormKind, NormPlacement, NormSpec, OutputGate,
    OutputScale, QkNorm, Rope, RopePairing, RopeScaling, Sinks, Values, Window,
};

/// Of norms.
pub(super) const EPS: RangeInclusive<f32> = 1e-12..=0.1;

/// Where plain decoders differ without a key of their own.
pub(super) struct Plain {
    pub(super) pairing: RopePairing,
    /// RoPE base where the file does not say.
    pub(super) rope_base: f32,
    pub(super) activation: Activation,
}

/// RMS norm.
pub(super) fn rms_norm(m: &Metadata<'_>) -> Result<NormSpec, ModelError> {
    Ok(NormSpec { kind: NormKind::Rms, eps: m.float("attention.layer_norm_rms_epsilon", EPS)? })
}

/// Layer norm.
pub(super) fn layer_norm(m: &Metadata<'_>) -> Result<NormSpec, ModelError> {
    Ok(NormSpec { kind: NormKind::Layer, eps: m.float("attention.layer_norm_epsilon", EPS)? })
}

/// Layer norm without a bias.
pub(super) fn layer_norm_unbiased(m: &Metadata<'_>) -> Result<NormSpec, ModelError> {
    Ok(NormSpec { kind: NormKind::LayerUnbiased, ..layer_norm(m)? })
}

/// The layers, with a gated FFN each, for the family to change what it does differently.
pub(super) fn layers(m: &Metadata<'_>, plain: &Plain) -> Result<Vec<LayerSpec>, ModelError> {
    gated_layers(m, plain, rms_norm(m)?)
}

/// The layers, with a gated FFN each and norms as `norm` has them.
pub(super) fn gated_layers(m: &Metadata<'_>, plain: &Plain, norm: NormSpec) -> Result<Vec<LayerSpec>, ModelError> {
    let inner = inner(m)?;
    layers_with(m, plain, norm, |layer| {
        let bias = bias(m, layer, "ffn_down.bias");
        Ffn::Gated { inner: inner[layer], activation: plain.activation, bias }
    })
}

/// The layers, each with the FFN that `ffn` makes for it.
pub(super) fn layers_with(
    m: &Metadata<'_>,
    plain: &Plain,
    norm: NormSpec,
    ffn: impl Fn(usize) -> Ffn,
) -> Result<Vec<LayerSpec>, ModelError> {
    let count = m.layer_count()?;
    let heads = m.counts("attention.head_count", count, 1..=HEADS_MAX)?;
    let kv_heads = kv_heads(m, &heads)?;
    (0..count)
        .map(|layer| {
            let attention = attention(m, plain, layer, heads[layer], kv_heads[layer])?;
            let mixer = Mixer::Attention(attention);
            let (norms, output_scale) = (NormPlacement::Pre, OutputScale::None);
            Ok(LayerSpec { mixer, ffn: ffn(layer), norms, norm, residual_scale: 1.0, output_scale })
        })
        .collect()
}

/// The attention of each layer, for the family to change what it does differently.
pub(super) fn attentions(layers: &mut [LayerSpec]) -> impl Iterator<Item = &mut AttentionSpec> {
    layers.iter_mut().filter_map(LayerSpec::attention_mut)
}

/// Width of each layer's FFN.
pub(super) fn inner(m: &Metadata<'_>) -> Result<Vec<usize>, ModelError> {
    m.counts("feed_forward_length", m.layer_count()?, 1..=WIDTH_MAX)
}

/// Whether a bias is there, by the tensor `suffix` of the layer.
pub(super) fn bias(m: &Metadata<'_>, layer: usize, suffix: &str) -> Bias {
    if m.has_tensor(&format!("blk.{layer}.{suffix}")) { Bias::Present } else { Bias::None }
}

/// Gives a window of `attention.sliding_window` positions to all layers but every `period`-th, where the file does not say
/// otherwise, and tells which have one.
pub(super) fn windows(
    m: &Metadata<'_>,
    layers: &mut [LayerSpec],
    default_width: Option<usize>,
    default_period: usize,
) -> Result<Vec<bool>, ModelError> {
    const WIDTH: &str = "attention.sliding_window";
    const PATTERN: &str = "attention.sliding_window_pattern";
    let width = match default_width {
        Some(width) => m.count_or(WIDTH, width, 1..=CONTEXT_MAX)?,
        None => m.count(WIDTH, 1..=CONTEXT_MAX)?,
    };
    let windowed = match m.flags(PATTERN, layers.len())? {
        Some(flags) => flags,
        None => {
            let period = m.count_or(PATTERN, default_period, 1..=LAYERS_MAX)?;
            (1..=layers.len()).map(|nth| !nth.is_multiple_of(period)).collect()
        }
    };
    for (attention, _) in attentions(layers).zip(&windowed).filter(|(_, windowed)| **windowed) {
        attention.window = Window::Sliding(width);
    }
    Ok(windowed)
}

/// Gives windows as `windows` does, and takes positions away from the layers without one.
pub(super) fn positions_in_windows(
    m: &Metadata<'_>,
    layers: &mut [LayerSpec],
    default_width: Option<usize>,
    default_period: usize,
) -> Result<(), ModelError> {
    let windowed = windows(m, layers, default_width, default_period)?;
    let full = attentions(layers).zip(windowed).filter(|(_, windowed)| !windowed);
    full.for_each(|(attention, _)| attention.rope = None);
    Ok(())
}

/// Gives the attention of a layer with a window the width of its own heads, and a rotation of its own.
pub(super) fn narrow(m: &Metadata<'_>, attention: &mut AttentionSpec) -> Result<(), ModelError> {
    const WIDTH: &str = "attention.key_length_swa";
    const VALUES: &str = "attention.value_length_swa";
    const ROTATED: &str = "rope.dimension_count_swa";
    let width = m.count_or(WIDTH, attention.head_dim, 2..=HEADS_MAX)?;
    m.count_or(VALUES, width, width..=width)?;
    attention.head_dim = width;
    if let Some(rope) = &mut attention.rope {
        rope.dims = m.count_or(ROTATED, rope.dims.min(width), 2..=width)?;
        if !rope.dims.is_multiple_of(2) {
            return Err(m.out_of_range(ROTATED, rope.dims, "an even number".to_owned()));
        }
        rope.base = m.float_or("rope.freq_base_swa", 10_000.0, ROPE_BASE)?;
        rope.scaling = RopeScaling::None;
    }
    Ok(())
}

fn attention(
    m: &Metadata<'_>,
    plain: &Plain,
    layer: usize,
    heads: usize,
    kv_heads: usize,
) -> Result<AttentionSpec, ModelError> {
    let head_dim = head_dim(m, heads)?;
    let dims = m.count_or("rope.dimension_count", head_dim, 2..=head_dim)?;
    if !dims.is_multiple_of(2) {
        return Err(m.out_of_range("rope.dimension_count", dims, "an even number".to_owned()));
    }
    let base = m.float_or("rope.freq_base", plain.rope_base, ROPE_BASE)?;
    let (scaling, magnitude) = rope::scaling(m)?;
    Ok(AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        soft_cap: None,
        sinks: Sinks::None,
        window: Window::Full,
        rope: Some(Rope { pairing: plain.pairing, dims, base, scaling, magnitude }),
        qk_norm: QkNorm::None,
        temperature: None,
        source: KvSource::Own,
        values: Values::Own,
        blocks: None,
        qkv_bias: bias(m, layer, "attn_q.bias"),
        output_bias: bias(m, layer, "attn_output.bias"),
        output_gate: OutputGate::None,
    })
}

/// Which layers have no key/value heads, because they have a state.
pub(super) fn without_kv_heads(m: &Metadata<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    let kv_heads = m.counts("attention.head_count_kv", layers, 0..=HEADS_MAX)?;
    Ok(kv_heads.into_iter().map(|kv_heads| kv_heads == 0).collect())
}

/// Key/value heads of each layer: as many as query heads where the file does not say.
fn kv_heads(m: &Metadata<'_>, heads: &[usize]) -> Result<Vec<usize>, ModelError> {
    const KEY: &str = "attention.head_count_kv";
    if !m.has(KEY) {
        return Ok(heads.to_vec());
    }
    // Layers without any have a state in place of attention: a family that knows of them asks `without_kv_heads`.
    let least = usize::from(!m.has("ssm.state_size"));
    let kv_heads = m.counts(KEY, heads.len(), least..=HEADS_MAX)?;
    let kv_heads: Vec<_> = kv_heads.iter().zip(heads).map(|(kv, heads)| if *kv == 0 { *heads } else { *kv }).collect();
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
