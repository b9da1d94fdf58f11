//! What the families share whose layers go by the gated delta rule, but for every few that attend.

use super::{
    ModelError,
    metadata::{HEADS_MAX, LAYERS_MAX, Metadata, WIDTH_MAX},
};
use crate::spec::{
    DeltaGates, DeltaInputs, DeltaOutputGate, GatedDeltaSpec, KeySharing, LayerSpec, Mixer, OutputGate, QkNorm,
};

/// Every fourth layer attends, where the file does not say otherwise.
const PERIOD: usize = 4;
/// Rows that a convolution sees; published models have 4.
const TAPS_MAX: usize = 64;

/// Makes attention of `layers` gated, with norms on each head of q and k, and puts the gated delta rule in place of it
/// in all layers but those that the file says attend.
pub(super) fn put(
    m: &Metadata<'_>,
    layers: &mut [LayerSpec],
    sharing: KeySharing,
    gates: DeltaGates,
) -> Result<(), ModelError> {
    let (delta, recurrent) = (delta(m, sharing, gates)?, recurrent(m, layers.len())?);
    for (layer, recurrent) in layers.iter_mut().zip(recurrent) {
        if recurrent {
            layer.mixer = Mixer::GatedDelta(delta.clone());
        } else if let Some(attention) = layer.attention_mut() {
            (attention.qk_norm, attention.output_gate) = (QkNorm::PerHead, OutputGate::WithQuery);
        }
    }
    Ok(())
}

/// The rule with a decay of each element of a key, as many heads of keys as of values, and what is narrow as wide as a head.
pub(super) fn each_element(m: &Metadata<'_>) -> Result<GatedDeltaSpec, ModelError> {
    let heads = m.count("attention.head_count", 1..=HEADS_MAX)?;
    let head_dim = whole_groups(m, "kda.head_dim")?;
    Ok(GatedDeltaSpec {
        key_heads: heads,
        value_heads: heads,
        head_dim,
        taps: taps(m)?,
        sharing: KeySharing::Adjacent,
        gates: DeltaGates::EachElement(head_dim),
        inputs: DeltaInputs::Apart,
        output_gate: DeltaOutputGate::SigmoidNarrow(head_dim),
    })
}

/// Refuses sections of a head's rotation under which text would not be rotated as by plain RoPE. Sections of M-RoPE have a
/// position of their own each; those of a text are equal in the first three sections, and 0 in the fourth, which must
/// therefore have no pair. Interleaved, pair i belongs to section i mod 3, as far as that one goes, and else to the fourth.
pub(super) fn check_sections(m: &Metadata<'_>, layers: &[LayerSpec]) -> Result<(), ModelError> {
    const KEY: &str = "rope.dimension_sections";
    let sections = m.counts(KEY, SECTIONS, 0..=HEADS_MAX)?;
    let pairs = layers.iter().filter_map(LayerSpec::rope).map(|rope| rope.dims / 2).max().unwrap_or(0);
    let all: usize = sections.iter().sum();
    let has_position = |pair: usize| pair % all < 3 * sections[pair % all % 3];
    if pairs > 0 && (all == 0 || !(0..pairs).all(has_position)) {
        let supported = format!("three sections that share {pairs} pairs in turn, and none in the fourth");
        return Err(m.unsupported(KEY, format!("{sections:?}"), &supported));
    }
    Ok(())
}

const SECTIONS: usize = 4;

fn delta(m: &Metadata<'_>, sharing: KeySharing, gates: DeltaGates) -> Result<GatedDeltaSpec, ModelError> {
    const VALUE_HEADS: &str = "ssm.time_step_rank";
    const VALUES: &str = "ssm.inner_size";
    let head_dim = whole_groups(m, "ssm.state_size")?;
    let key_heads = m.count("ssm.group_count", 1..=HEADS_MAX)?;
    let value_heads = m.count(VALUE_HEADS, 1..=HEADS_MAX)?;
    if !value_heads.is_multiple_of(key_heads) {
        return Err(m.out_of_range(VALUE_HEADS, value_heads, format!("a multiple of the {key_heads} key heads")));
    }
    let values = m.count(VALUES, 1..=WIDTH_MAX)?;
    if values != value_heads * head_dim {
        return Err(m.unsupported(VALUES, values.to_string(), &format!("{value_heads} heads of {head_dim}")));
    }
    let (inputs, output_gate) = (DeltaInputs::Together, DeltaOutputGate::Silu);
    Ok(GatedDeltaSpec { key_heads, value_heads, head_dim, taps: taps(m)?, sharing, gates, inputs, output_gate })
}

/// Elements of a head.
fn whole_groups(m: &Metadata<'_>, key: &'static str) -> Result<usize, ModelError> {
    let head_dim = m.count(key, 1..=HEADS_MAX)?;
    if !head_dim.is_multiple_of(16) {
        return Err(m.unsupported(key, head_dim.to_string(), "a multiple of 16"));
    }
    Ok(head_dim)
}

fn taps(m: &Metadata<'_>) -> Result<usize, ModelError> {
    m.count("ssm.conv_kernel", 2..=TAPS_MAX)
}

/// Which layers have a state.
fn recurrent(m: &Metadata<'_>, layers: usize) -> Result<Vec<bool>, ModelError> {
    if let Some(flags) = m.flags("attention.recurrent_layers", layers)? {
        return Ok(flags);
    }
    let period = m.count_or("full_attention_interval", PERIOD, 1..=LAYERS_MAX)?;
    Ok((1..=layers).map(|nth| !nth.is_multiple_of(period)).collect())
}
