//! Gemma 4, text only: layers with a sliding window and heads of their own width, then one that attends to all, whose values are
//! its keys; norms around each half, a factor on each layer. Some have a mixture of experts beside the feed-forward half. In others
//! (E2B, E4B) each layer takes in an embedding of its own, and the later ones meet the keys and values of earlier ones.

use std::ops::RangeInclusive;

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{Metadata, WIDTH_MAX},
};
use crate::spec::{
    Activation, AttentionSpec, ExpertScales, Ffn, KvSource, LayerIndex, LayerInputs, LayerSpec, NormPlacement,
    OutputScale, QkNorm, RopePairing, Routing, Scoring, Values, Weighting, Window,
};

const CAP: RangeInclusive<f32> = 1e-3..=1e6;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
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
            dense::narrow(m, attention)?;
        }
    }
    share(m, &mut layers)?;
    let norm = dense::rms_norm(m)?;
    let width = m.count_or("embedding_length_per_layer_input", 0, 0..=WIDTH_MAX)?;
    let layer_inputs = LayerInputs { width, activation: plain.activation, eps: norm.eps };
    let layer_inputs = (width > 0).then_some(layer_inputs);
    let logit_cap = m.has("final_logit_softcapping").then(|| m.float("final_logit_softcapping", CAP)).transpose()?;
    let embedding_scale = (m.hidden()? as f32).sqrt();
    Ok(Decoder { embedding_scale, logit_cap, layer_inputs, ..Decoder::plain(norm, layers) })
}

/// Lets the last layers, as many as the file says, meet the keys and values of the two before them: of the last of these, or, with a
/// window, of the one before that.
fn share(m: &Metadata<'_>, layers: &mut [LayerSpec]) -> Result<(), ModelError> {
    const SHARED: &str = "attention.shared_kv_layers";
    let count = m.count_or(SHARED, 0, 0..=layers.len().saturating_sub(2))?;
    let (own, sharing) = layers.split_at_mut(layers.len() - count);
    for attention in dense::attentions(sharing) {
        let back = if attention.window == Window::Full { 1 } else { 2 };
        let source = own.len() - back;
        let shape = |of: &AttentionSpec| (of.window, of.kv_heads, of.head_dim);
        if own[source].attention().map(shape) != Some(shape(attention)) {
            let needed = format!("layers behind one of the same shape, which layer {source} is not");
            return Err(m.out_of_range(SHARED, count, needed));
        }
        attention.source = KvSource::Layer(LayerIndex(source));
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
