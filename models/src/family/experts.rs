//! Mixtures of experts, from the keys that families share.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    metadata::{HEADS_MAX, Metadata, WIDTH_MAX},
};
use crate::spec::{Activation, Bias, ExpertGroups, ExpertsSpec, Routing};

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
    // ggml takes a scale of 0 for none.
    let scale = m.float_or("expert_weights_scale", 1.0, WEIGHT_SCALE)?;
    let weight_scale = if scale == 0.0 { 1.0 } else { scale };
    let routing = Routing { groups: groups(m, count, used)?, weight_scale, ..routing };
    Ok(ExpertsSpec { count, used, inner, activation, bias: Bias::None, routing, shared: None })
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
