//! Whether a spec, which comes from outside, can be computed at all.

use std::ops::Range;

use qmesh_kernels::lanes::LANES;
use qmesh_models::spec::{
    Activation, AttentionSpec, Bias, BlockIndexerSpec, DeltaGates, DeltaOutputGate, ExpertForm, ExpertGroups,
    ExpertsSpec, Ffn, GatedDeltaSpec, IndexerSpec, KvSource, LatentQueries, LatentSpec, LayerIndex, LayerInputs,
    LayerSpec, Mixer, ModelSpec, NormPlacement, OutputGate, QkNorm, Rope, RopeScaling, SharedExpert, StateSpaceSpec,
    Temperature, Values, Window,
};

use crate::error::EngineError;

/// No dimension of a real model comes near this; products of two of them cannot overflow.
const DIMENSION_MAX: usize = 1 << 24;

pub(super) fn check(spec: &ModelSpec, layers: &Range<usize>) -> Result<(), EngineError> {
    if layers.is_empty() || layers.end > spec.layers.len() {
        return Err(EngineError::Layers { range: layers.clone(), count: spec.layers.len() });
    }
    if !spec.can_begin(layers.start) {
        return Err(wrong(format!(
            "a shard that begins with layer {}, which, or one behind it, needs an earlier one",
            layers.start
        )));
    }
    dimension("hidden", spec.hidden)?;
    dimension("vocab", spec.vocab)?;
    positive("embedding_scale", spec.embedding_scale)?;
    positive("head.norm.eps", spec.head.norm.eps)?;
    positive("head.soft_cap", spec.head.soft_cap.unwrap_or(1.0))?;
    positive("head.logit_scale", spec.head.logit_scale)?;
    if let Some(LayerInputs { width, activation, eps }) = spec.layer_inputs {
        dimension("layer_inputs.width", width)?;
        dimension("layers * layer_inputs.width", spec.layers.len().saturating_mul(width))?;
        check_activation(activation)?;
        positive("layer_inputs.eps", eps)?;
    }
    for (index, layer) in layers.clone().zip(&spec.layers[layers.clone()]) {
        match &layer.mixer {
            Mixer::Attention(attention) => {
                check_attention(attention)?;
                check_source(spec, index, attention)?;
            }
            Mixer::GatedDelta(delta) => check_gated_delta(delta)?,
            Mixer::Latent(latent) => check_latent(latent)?,
            Mixer::StateSpace(space) => check_state_space(space)?,
            Mixer::None => check_alone(layer)?,
        }
        positive("norm.eps", layer.norm.eps)?;
        positive("residual_scale", layer.residual_scale)?;
        match layer.ffn {
            Ffn::Gated { inner, activation, .. } | Ffn::Plain { inner, activation, .. } => {
                dimension("inner", inner)?;
                check_activation(activation)?;
            }
            Ffn::Experts(ref experts) => check_experts(experts, spec.hidden)?,
            Ffn::Both { inner, ref experts } => {
                dimension("inner", inner)?;
                check_experts(experts, spec.hidden)?;
            }
            Ffn::None => check_alone(layer)?,
        }
    }
    Ok(())
}

/// Of a layer without one of its halves.
fn check_alone(layer: &LayerSpec) -> Result<(), EngineError> {
    if (&layer.mixer, &layer.ffn) == (&Mixer::None, &Ffn::None) {
        return Err(wrong("a layer without any half".into()));
    }
    match layer.norms {
        NormPlacement::Pre | NormPlacement::PreAndPost | NormPlacement::Post => Ok(()),
        NormPlacement::Beside => Err(wrong("halves side by side, of which one is missing".into())),
    }
}

fn check_experts(experts: &ExpertsSpec, hidden: usize) -> Result<(), EngineError> {
    let ExpertsSpec { count, used, inner, form, latent, activation, bias, ref routing, shared } = *experts;
    dimension("experts.count", count)?;
    dimension("experts.inner", inner)?;
    dimension("experts.latent", latent.unwrap_or(1))?;
    let width = inner.saturating_mul(2).max(latent.unwrap_or(hidden));
    dimension("experts.count * experts.inner", count.saturating_mul(width))?;
    match (form, latent, bias) {
        (ExpertForm::Gated, None, _) | (_, _, Bias::None) => {}
        (_, _, Bias::Present) => return Err(wrong("biases of experts in a form that has none".into())),
    }
    check_activation(activation)?;
    if let Some(SharedExpert { inner, activation, .. }) = shared {
        dimension("experts.shared.inner", inner)?;
        check_activation(activation)?;
    }
    if !(1..=count).contains(&used) {
        return Err(wrong(format!("experts.used = {used} is not in 1..={count}")));
    }
    if let Some(groups) = routing.groups {
        check_groups(groups, count, used)?;
    }
    positive("experts.weight_scale", routing.weight_scale)
}

fn check_activation(activation: Activation) -> Result<(), EngineError> {
    match activation {
        Activation::Silu | Activation::GeluTanh | Activation::SiluClamped | Activation::ReluSquared => Ok(()),
        Activation::SiluLimited(limit) => positive("activation.limit", limit),
    }
}

fn check_groups(groups: ExpertGroups, experts: usize, used_experts: usize) -> Result<(), EngineError> {
    let ExpertGroups { count, used } = groups;
    let each = experts.checked_div(count).unwrap_or(0);
    if each < 2 || each * count != experts {
        return Err(wrong(format!("{experts} experts do not make {count} groups of at least two")));
    }
    if !(1..=count).contains(&used) || used * each < used_experts {
        return Err(wrong(format!("{used} of {count} groups of {each} have no {used_experts} experts")));
    }
    Ok(())
}

fn check_attention(attention: &AttentionSpec) -> Result<(), EngineError> {
    let AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale,
        soft_cap,
        window,
        rope,
        qk_norm,
        temperature,
        values,
        blocks,
        qkv_bias,
        output_gate,
        ..
    } = attention;
    dimension("heads", *heads)?;
    dimension("kv_heads", *kv_heads)?;
    dimension("head_dim", *head_dim)?;
    dimension("heads * head_dim", heads * head_dim)?;
    if !heads.is_multiple_of(*kv_heads) {
        return Err(wrong(format!("{heads} heads cannot share {kv_heads} kv_heads evenly")));
    }
    positive("attention.scale", *scale)?;
    positive("attention.soft_cap", soft_cap.unwrap_or(1.0))?;
    if (*qk_norm, *output_gate) == (QkNorm::AllHeads, OutputGate::WithQuery) {
        return Err(wrong("a norm over all query heads and the gates between them".into()));
    }
    match (values, qkv_bias) {
        (Values::KeysNormed, Bias::Present) => return Err(wrong("biases of values that are keys".into())),
        (Values::Own | Values::OwnNormed, _) | (_, Bias::None) => {}
    }
    match window {
        Window::Sliding(0) => return Err(wrong("a sliding window of 0 positions".into())),
        Window::Chunked(0) => return Err(wrong("chunks of 0 positions".into())),
        Window::Full | Window::Sliding(_) | Window::Chunked(_) => {}
    }
    check_temperature("attention", *temperature)?;
    if let Some(indexer) = blocks {
        check_block_indexer(indexer, attention)?;
    }
    rope.as_ref().map_or(Ok(()), |rope| check_rope(rope, *head_dim))
}

/// Whether the layer's keys and values are its own, or those of an earlier one whose heads have the same shape. That a shard has
/// both was checked before.
fn check_source(spec: &ModelSpec, index: usize, attention: &AttentionSpec) -> Result<(), EngineError> {
    let KvSource::Layer(LayerIndex(source)) = attention.source else { return Ok(()) };
    let shape = |of: &AttentionSpec| (of.kv_heads, of.head_dim);
    let other = spec.layers.get(source).filter(|_| source < index).and_then(LayerSpec::attention);
    let other = other.filter(|of| of.source == KvSource::Own && shape(of) == shape(attention));
    if other.is_none() || attention.blocks.is_some() {
        return Err(wrong(format!("keys and values of layer {source} in layer {index}, which do not fit it")));
    }
    Ok(())
}

fn check_block_indexer(indexer: &BlockIndexerSpec, attention: &AttentionSpec) -> Result<(), EngineError> {
    let BlockIndexerSpec { head_dim, block, used, local } = *indexer;
    dimension("blocks.head_dim", head_dim)?;
    dimension("kv_heads * blocks.head_dim", indexer.row_len(attention.kv_heads))?;
    dimension("blocks.block", block)?;
    dimension("blocks.used", used)?;
    if !(1..=used).contains(&local) {
        return Err(wrong(format!("blocks.local = {local} is not in 1..={used}")));
    }
    if attention.window != Window::Full {
        return Err(wrong("blocks of positions that are chosen within a window".into()));
    }
    attention.rope.as_ref().map_or(Ok(()), |rope| check_rope(rope, head_dim))
}

fn check_gated_delta(delta: &GatedDeltaSpec) -> Result<(), EngineError> {
    let GatedDeltaSpec { key_heads, value_heads, head_dim, taps, .. } = *delta;
    dimension("delta.key_heads", key_heads)?;
    dimension("delta.value_heads", value_heads)?;
    dimension("delta.head_dim", head_dim)?;
    dimension("delta.channels", delta.row_len())?;
    dimension("delta.head_dim * delta.values", delta.state_len())?;
    dimension("delta.taps", taps)?;
    dimension("delta.channels * delta.taps", delta.channels().saturating_mul(taps))?;
    match delta.gates {
        DeltaGates::Apart | DeltaGates::Together => {}
        DeltaGates::EachElement(rank) => {
            dimension("delta.gates", rank)?;
            if key_heads != value_heads {
                return Err(wrong(format!("{value_heads} decays of each element of {key_heads} keys")));
            }
        }
    }
    match delta.output_gate {
        DeltaOutputGate::Silu => {}
        DeltaOutputGate::SigmoidNarrow(rank) => dimension("delta.output_gate", rank)?,
    }
    if !value_heads.is_multiple_of(key_heads) {
        return Err(wrong(format!("{value_heads} value heads cannot share {key_heads} key heads evenly")));
    }
    if !head_dim.is_multiple_of(LANES) {
        return Err(wrong(format!("delta.head_dim = {head_dim} is no multiple of {LANES}")));
    }
    Ok(())
}

fn check_latent(latent: &LatentSpec) -> Result<(), EngineError> {
    let LatentSpec { heads, latent_dim, plain_dim, rope_dim, value_dim, .. } = *latent;
    dimension("latent.heads", heads)?;
    match latent.queries {
        LatentQueries::Direct => {}
        LatentQueries::Latent(rank) => dimension("latent.queries", rank)?,
    }
    for (name, dim) in
        [("latent_dim", latent_dim), ("plain_dim", plain_dim), ("rope_dim", rope_dim), ("value_dim", value_dim)]
    {
        dimension(name, dim)?;
        dimension(&format!("heads * {name}"), heads * dim)?;
    }
    positive("latent.scale", latent.scale)?;
    check_temperature("latent", latent.temperature)?;
    if let Some(indexer) = latent.indexer() {
        check_indexer(indexer, latent.queries)?;
    }
    latent.rope.as_ref().map_or(Ok(()), |rope| check_rope(rope, rope_dim))
}

fn check_indexer(indexer: &IndexerSpec, queries: LatentQueries) -> Result<(), EngineError> {
    let IndexerSpec { heads, head_dim, used, ref rope, eps } = *indexer;
    dimension("indexer.heads", heads)?;
    dimension("indexer.head_dim", head_dim)?;
    dimension("indexer.heads * indexer.head_dim", indexer.queries())?;
    dimension("indexer.used", used)?;
    positive("indexer.eps", eps)?;
    check_rope(rope, head_dim)?;
    match queries {
        LatentQueries::Latent(_) => Ok(()),
        LatentQueries::Direct => Err(wrong("an indexer whose queries have no latent to be made of".into())),
    }
}

fn check_state_space(space: &StateSpaceSpec) -> Result<(), EngineError> {
    let StateSpaceSpec { heads, head_dim, groups, state_size, taps, .. } = *space;
    dimension("space.heads", heads)?;
    dimension("space.head_dim", head_dim)?;
    dimension("space.groups", groups)?;
    dimension("space.state_size", state_size)?;
    dimension("space.channels", space.row_len())?;
    dimension("space.state_size * space.values", space.state_len())?;
    dimension("space.taps", taps)?;
    dimension("space.channels * space.taps", space.channels().saturating_mul(taps))?;
    if !heads.is_multiple_of(groups) {
        return Err(wrong(format!("{heads} heads cannot be {groups} groups")));
    }
    if !head_dim.is_multiple_of(LANES) {
        return Err(wrong(format!("space.head_dim = {head_dim} is no multiple of {LANES}")));
    }
    Ok(())
}

fn check_temperature(of: &str, temperature: Option<Temperature>) -> Result<(), EngineError> {
    let Some(Temperature { scale, length, .. }) = temperature else { return Ok(()) };
    positive(&format!("{of}.temperature.scale"), scale)?;
    positive(&format!("{of}.temperature.length"), length as f32)
}

fn check_rope(rope: &Rope, head_dim: usize) -> Result<(), EngineError> {
    if !rope.dims.is_multiple_of(2) || rope.dims > head_dim {
        return Err(wrong(format!("rope.dims {} is odd or exceeds head_dim {head_dim}", rope.dims)));
    }
    positive("rope.base", rope.base)?;
    positive("rope.magnitude", rope.magnitude)?;
    match rope.scaling {
        RopeScaling::None | RopeScaling::Factors => Ok(()),
        RopeScaling::Linear(factor) => positive("rope.scaling", factor),
        RopeScaling::LongRope { original } => positive("rope.scaling.original", original as f32),
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow } => {
            positive("rope.scaling.factor", factor)?;
            positive("rope.scaling.original", original as f32)?;
            positive("rope.scaling.beta_fast", beta_fast)?;
            positive("rope.scaling.beta_slow", beta_slow)
        }
    }
}

fn dimension(name: &str, value: usize) -> Result<(), EngineError> {
    let fits = (1..=DIMENSION_MAX).contains(&value);
    fits.then_some(()).ok_or_else(|| wrong(format!("{name} = {value} is not in 1..={DIMENSION_MAX}")))
}

fn positive(name: &str, value: f32) -> Result<(), EngineError> {
    let fits = value.is_normal() && value > 0.0;
    fits.then_some(()).ok_or_else(|| wrong(format!("{name} = {value} is not a positive number")))
}

fn wrong(what: String) -> EngineError {
    EngineError::Spec { what }
}
