//! Mixtures of experts, from the keys that families share.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    dense::{self, Plain},
    metadata::{HEADS_MAX, Metadata, WIDTH_MAX},
    tensors,
};
use crate::spec::{
    Activation, Bias, ExpertForm, ExpertGroups, ExpertsSpec, Ffn, LayerSpec, Routing, Scoring, SharedExpert,
    SharedGate, Weighting,
};

const WEIGHT_SCALE: RangeInclusive<f32> = 0.0..=1e4;

/// Experts of width `inner`, without biases or a shared one, chosen as `routing` has it, with the file's groups and scale.
pub(super) fn spec(
    m: &Metadata<'_>,
    inner: usize,
    activation: Activation,
    routing: Routing,
) -> Result<ExpertsSpec, ModelError> {
    let count = m.count("expert_count", 1..=HEADS_MAX)?;
    let used = m.count("expert_used_count", 1..=count)?;
    of(m, [count, used], inner, activation, routing)
}

/// The same, where a layer has its own number of experts that are used: of `count` experts, `used`.
pub(super) fn of(
    m: &Metadata<'_>,
    [count, used]: [usize; 2],
    inner: usize,
    activation: Activation,
    routing: Routing,
) -> Result<ExpertsSpec, ModelError> {
    // ggml takes a scale of 0 for none.
    let scale = m.float_or("expert_weights_scale", 1.0, WEIGHT_SCALE)?;
    let weight_scale = if scale == 0.0 { 1.0 } else { scale };
    let routing = Routing { groups: groups(m, count, used)?, weight_scale, ..routing };
    let (form, latent, bias) = (ExpertForm::Gated, None, Bias::None);
    Ok(ExpertsSpec { count, used, inner, form, latent, activation, bias, routing, shared: None })
}

/// Experts chosen and weighed as the file says, by `default` where it does not say how they are scored.
pub(super) fn as_said(m: &Metadata<'_>, activation: Activation, default: Scoring) -> Result<ExpertsSpec, ModelError> {
    let routing = Routing::plain(scoring(m, default)?, weighting(m)?);
    spec(m, width(m)?, activation, routing)
}

/// Width of an expert: where the file does not say, the experts used share the FFN's.
pub(super) fn width(m: &Metadata<'_>) -> Result<usize, ModelError> {
    const KEY: &str = "expert_feed_forward_length";
    if m.has(KEY) {
        return m.count(KEY, 1..=WIDTH_MAX);
    }
    let used = m.count("expert_used_count", 1..=HEADS_MAX)?;
    Ok(m.count("feed_forward_length", used..=WIDTH_MAX)? / used)
}

/// The scoring that the file names by number, or `default` where it names none.
pub(super) fn scoring(m: &Metadata<'_>, default: Scoring) -> Result<Scoring, ModelError> {
    const KEY: &str = "expert_gating_func";
    // ggml's number for a file that does not say.
    match m.count_or(KEY, 0, 0..=usize::MAX)? {
        0 => Ok(default),
        1 => Ok(Scoring::Softmax),
        2 => Ok(Scoring::Sigmoid),
        3 => Ok(Scoring::SoftmaxOfUsed),
        4 => Ok(Scoring::SqrtSoftplus),
        other => {
            let known = "1 (softmax), 2 (sigmoid), 3 (softmax over those used), 4 (root of softplus)";
            Err(m.unsupported(KEY, other.to_string(), known))
        }
    }
}

/// Whether weights are normalised; they are not where the file does not say.
pub(super) fn weighting(m: &Metadata<'_>) -> Result<Weighting, ModelError> {
    let normalised = m.flag_or("expert_weights_norm", false)?;
    Ok(if normalised { Weighting::Normalised } else { Weighting::AsScored })
}

/// The shared expert without a gate, as wide as the file says; `None` where it does not say, or 0.
pub(super) fn shared_by_width(m: &Metadata<'_>, activation: Activation) -> Result<Option<SharedExpert>, ModelError> {
    let inner = m.count_or("expert_shared_feed_forward_length", 0, 0..=WIDTH_MAX)?;
    Ok((inner > 0).then_some(SharedExpert { inner, activation, gate: SharedGate::None }))
}

/// The shared expert without a gate, as wide as `expert_shared_count` experts of width `inner`; `None` where that is 0.
pub(super) fn shared_by_count(
    m: &Metadata<'_>,
    inner: usize,
    activation: Activation,
) -> Result<Option<SharedExpert>, ModelError> {
    const KEY: &str = "expert_shared_count";
    let width = m.count(KEY, 0..=WIDTH_MAX / inner)? * inner;
    Ok((width > 0).then_some(SharedExpert { inner: width, activation, gate: SharedGate::None }))
}

/// The shared expert behind its gate, as wide as the file says, or as a dense layer.
pub(super) fn shared_with_gate(m: &Metadata<'_>, activation: Activation) -> Result<Option<SharedExpert>, ModelError> {
    const WIDTH: &str = "expert_shared_feed_forward_length";
    let inner = if m.has(WIDTH) { m.count(WIDTH, 1..=WIDTH_MAX)? } else { dense::inner(m)?[0] };
    Ok(Some(SharedExpert { inner, activation, gate: SharedGate::Sigmoid }))
}

/// The layers: the leading ones dense, the others with `experts`, as their tensors have them.
pub(super) fn layers(m: &Metadata<'_>, plain: &Plain, experts: &ExpertsSpec) -> Result<Vec<LayerSpec>, ModelError> {
    let ffns = behind_dense(m, plain.activation, || Ok(experts.clone()))?;
    dense::layers_with(m, plain, dense::rms_norm(m)?, |layer| ffns[layer].clone())
}

/// The feed-forward half of each layer: of the leading ones dense, of the others, if there are any, `experts`, as their tensors have
/// them.
pub(super) fn behind_dense(
    m: &Metadata<'_>,
    activation: Activation,
    experts: impl FnOnce() -> Result<ExpertsSpec, ModelError>,
) -> Result<Vec<Ffn>, ModelError> {
    let count = m.layer_count()?;
    let leading = m.count_or("leading_dense_block_count", 0, 0..=count)?;
    let inner = if leading > 0 { dense::inner(m)? } else { Vec::new() };
    let dense = inner.into_iter().take(leading).map(|inner| Ffn::Gated { inner, activation, bias: Bias::None });
    let experts = if leading < count { Some(experts()?) } else { None };
    let others = (leading..count).zip(experts.iter().cycle());
    Ok(dense.chain(others.map(|(layer, experts)| Ffn::Experts(in_layer(m, experts, layer)))).collect())
}

/// `experts` as the tensors of `layer` have them: with a bias for the choice or without one, gates and ups apart or together.
pub(super) fn in_layer(m: &Metadata<'_>, experts: &ExpertsSpec, layer: usize) -> ExpertsSpec {
    let mut experts = experts.clone();
    experts.routing.choice_bias = dense::bias(m, layer, "exp_probs_b.bias");
    if m.has_tensor(&format!("blk.{layer}.{}", tensors::GATES_AND_UPS)) {
        experts.form = ExpertForm::GatedTogether;
    }
    experts
}

/// Groups of experts, where there are several.
fn groups(m: &Metadata<'_>, experts: usize, used_experts: usize) -> Result<Option<ExpertGroups>, ModelError> {
    const COUNT: &str = "expert_group_count";
    const USED: &str = "expert_group_used_count";
    let count = m.count_or(COUNT, 1, 0..=experts)?;
    if count <= 1 {
        return Ok(None);
    }
    if !experts.is_multiple_of(count) || experts / count < 2 {
        return Err(m.out_of_range(
            COUNT,
            count,
            format!("groups of at least two, as large as each other, of {experts}"),
        ));
    }
    let used = m.count(USED, 1..=count - 1)?;
    if used * (experts / count) < used_experts {
        return Err(m.out_of_range(USED, used, format!("enough groups for {used_experts} experts")));
    }
    Ok(Some(ExpertGroups { count, used }))
}
