//! State spaces, from the keys `ssm.*`.

use super::{
    ModelError, dense,
    metadata::{HEADS_MAX, Metadata, WIDTH_MAX},
};
use crate::spec::{Bias, StateSpaceSpec};

/// Rows that a convolution sees; published models have 4.
const TAPS_MAX: usize = 64;

/// The state space that all of a model's layers have, but for biases.
pub(super) fn spec(m: &Metadata<'_>) -> Result<StateSpaceSpec, ModelError> {
    const HEADS: &str = "ssm.time_step_rank";
    const VALUES: &str = "ssm.inner_size";
    let heads = m.count(HEADS, 1..=HEADS_MAX)?;
    let groups = m.count("ssm.group_count", 1..=HEADS_MAX)?;
    if !heads.is_multiple_of(groups) {
        return Err(m.out_of_range(HEADS, heads, format!("a multiple of the {groups} groups")));
    }
    let values = m.count(VALUES, 1..=WIDTH_MAX)?;
    if !values.is_multiple_of(16 * heads) {
        return Err(m.unsupported(VALUES, values.to_string(), &format!("{heads} heads of a multiple of 16")));
    }
    let state_size = m.count("ssm.state_size", 1..=HEADS_MAX)?;
    let taps = m.count("ssm.conv_kernel", 2..=TAPS_MAX)?;
    Ok(StateSpaceSpec { heads, head_dim: values / heads, groups, state_size, taps, bias: Bias::None })
}

/// That of one layer, whose convolution may have a bias.
pub(super) fn of_layer(m: &Metadata<'_>, spec: &StateSpaceSpec, layer: usize) -> StateSpaceSpec {
    StateSpaceSpec { bias: dense::bias(m, layer, "ssm_conv1d.bias"), ..spec.clone() }
}
