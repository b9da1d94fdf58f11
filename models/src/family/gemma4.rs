//! Gemma 4, text only: layers with a sliding window and heads of their own width, then one that attends to all, whose values are
//! its keys; norms around each half, a factor on each layer. Some have a mixture of experts beside the feed-forward half.
//! Those whose layers have embeddings of their own (E2B, E4B) are not known.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{HEADS_MAX, Metadata, ROPE_BASE},
};
use crate::spec::{
    Activation, AttentionSpec, ExpertScales, Ffn, LayerSpec, NormPlacement, OutputScale, QkNorm, RopePairing,
    RopeScaling, Routing, Scoring, Values, Weighting,
};

const CAP: RangeInclusive<f32> = 1e-3..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    for key in ["embedding_length_per_layer_input", "attention.shared_kv_layers"] {
        m.count_or(key, 0, 0..=0)?;
    }
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::GeluTanh };
    let mut layers = dense::layers(m, &plain)?;
    let windowed = dense::windows(m, &mut layers, None, 6)?;
    for (index, (layer, windowed)) in layers.iter_mut().zip(windowed).enumerate() {
        layer.norms = NormPlacement::PreAndPost;
        if m.has_tensor(&format!("blk.{index}.layer_output_scale.weight")) {
            layer.output_scale = OutputScale::Learned;
        }
        mixture(m, layer, index)?;
        let Some(attention) = layer.attention_mut() else { continue };
        (attention.qk_norm, attention.scale) = (QkNorm::PerHead, 1.0);
        let has_values = ["attn_v", "attn_qkv"].iter().any(|name| m.has_tensor(&format!("blk.{index}.{name}.weight")));
        attention.values = if has_values { Values::OwnNormed } else { Values::KeysNormed };
        if windowed {
            narrow(m, attention)?;
        }
    }
    let logit_cap = m.has("final_logit_softcapping").then(|| m.float("final_logit_softcapping", CAP)).transpose()?;
    let embedding_scale = (m.hidden()? as f32).sqrt();
    Ok(Decoder { embedding_scale, logit_cap, ..Decoder::plain(dense::rms_norm(m)?, layers) })
}

/// Gives the attention of a layer with a window the width of its own heads, and a rotation of its own.
fn narrow(m: &Metadata<'_>, attention: &mut AttentionSpec) -> Result<(), ModelError> {
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

/// Puts experts beside a layer's feed-forward half, where its tensors say that there are some.
fn mixture(m: &Metadata<'_>, layer: &mut LayerSpec, index: usize) -> Result<(), ModelError> {
    let (true, Ffn::Gated { inner, activation, .. }) =
        (m.has_tensor(&format!("blk.{index}.ffn_gate_inp.weight")), &layer.ffn)
    else {
        return Ok(());
    };
    let scaled = m.has_tensor(&format!("blk.{index}.ffn_down_exps.scale"));
    let expert_scales = if scaled { ExpertScales::Learned } else { ExpertScales::None };
    let routing = Routing { expert_scales, ..Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored) };
    let experts = experts::spec(m, experts::width(m)?, *activation, routing)?;
    layer.ffn = Ffn::Both { inner: *inner, experts: experts::in_layer(m, &experts, index) };
    Ok(())
}
