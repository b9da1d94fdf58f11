//! RoPE scalings, from the keys `rope.scaling.*` and the tensors that come with some.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    metadata::{CONTEXT_MAX, Metadata},
    tensors,
};
use crate::spec::{Rope, RopeScaling};

const FACTOR: RangeInclusive<f32> = 1e-3..=1e6;
const MAGNITUDE: RangeInclusive<f32> = 1e-3..=1e3;
const BETA: RangeInclusive<f32> = 1e-3..=1e6;

/// How frequencies are changed, and the factor on cosines and sines.
pub(super) fn scaling(m: &Metadata<'_>) -> Result<(RopeScaling, f32), ModelError> {
    const KIND: &str = "rope.scaling.type";
    let kind = m.text_or(KIND, "linear")?;
    let factor = factor(m)?;
    let magnitude = m.float_or("rope.scaling.attn_factor", 1.0, MAGNITUDE)?;
    let scaling = match kind {
        "yarn" => return Ok((yarn(m, factor)?, magnitude * yarn_magnitude(factor, 1.0))),
        "none" => RopeScaling::None,
        "longrope" => RopeScaling::LongRope { original: original(m)? },
        // The tensors tell where the key does not.
        "linear" if m.has_tensor(tensors::ROPE_FACTORS_LONG) => RopeScaling::LongRope { original: original(m)? },
        "linear" if m.has_tensor(tensors::ROPE_FACTORS) => RopeScaling::Factors,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear(factor),
        other => {
            let supported = "\"none\", \"linear\", \"yarn\", \"longrope\"";
            return Err(m.unsupported(KIND, format!("{other:?}"), supported));
        }
    };
    let by_tensor = matches!(scaling, RopeScaling::Factors | RopeScaling::LongRope { .. });
    if by_tensor && factor != 1.0 {
        return Err(m.unsupported("rope.scaling.factor", factor.to_string(), "1 beside factors as a tensor"));
    }
    Ok((scaling, magnitude))
}

/// Lets YaRN be as the file's `yarn_` keys say, which only some families obey: its bounds, and a multiplier m, by whose factor
/// 1 + 0.1 · m · ln(factor) cosines and sines are divided.
pub(super) fn yarn_as_said(m: &Metadata<'_>, rope: &mut Rope) -> Result<(), ModelError> {
    match &mut rope.scaling {
        RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Factors | RopeScaling::LongRope { .. } => {}
        RopeScaling::Yarn { factor, beta_fast, beta_slow, .. } => {
            *beta_fast = m.float_or("rope.scaling.yarn_beta_fast", *beta_fast, BETA)?;
            *beta_slow = m.float_or("rope.scaling.yarn_beta_slow", *beta_slow, BETA)?;
            let multiplier = m.float_or("rope.scaling.yarn_log_multiplier", 0.0, 0.0..=*MAGNITUDE.end())?;
            rope.magnitude /= yarn_magnitude(*factor, multiplier);
        }
    }
    Ok(())
}

/// How rotation is scaled in latent attention.
pub(super) struct LatentScaling {
    /// How frequencies are changed.
    pub(super) scaling: RopeScaling,
    /// Factor on cosines and sines.
    pub(super) magnitude: f32,
    /// Factor on scores.
    pub(super) score_factor: f32,
}

/// Scaling for latent attention. YaRN's factor 1 + 0.1 · m · ln(factor), where m is ten times `yarn_log_multiplier`, goes into
/// scores, squared, as both query and key would have it in all their elements; without a multiplier cosines and sines have
/// the paper's, and scores its square, which is what llama.cpp computes.
pub(super) fn latent_scaling(m: &Metadata<'_>) -> Result<LatentScaling, ModelError> {
    let (scaling, magnitude) = scaling(m)?;
    // Converters have multiplied it by 0.1.
    let multiplier = m.float_or("rope.scaling.yarn_log_multiplier", 0.0, 0.0..=*MAGNITUDE.end())? / 0.1;
    let (magnitude, on_scores) = match scaling {
        RopeScaling::None => (magnitude, 1.0),
        RopeScaling::Yarn { factor, .. } if multiplier > 0.0 => {
            (magnitude / yarn_magnitude(factor, 1.0), 1.0 + 0.1 * multiplier * factor.ln())
        }
        RopeScaling::Yarn { .. } => (magnitude, 1.0),
        RopeScaling::Linear(_) | RopeScaling::Factors | RopeScaling::LongRope { .. } => {
            let found = format!("{:?}", m.text_or("rope.scaling.type", "linear")?);
            return Err(m.unsupported("rope.scaling.type", found, "\"none\", \"yarn\""));
        }
    };
    let on_both = magnitude * on_scores;
    Ok(LatentScaling { scaling, magnitude, score_factor: on_both * on_both })
}

/// What positions are divided by; ggml takes 0 for no scaling.
fn factor(m: &Metadata<'_>) -> Result<f32, ModelError> {
    let key = if m.has("rope.scaling.factor") { "rope.scaling.factor" } else { "rope.scale_linear" };
    match m.float_or(key, 1.0, 0.0..=*FACTOR.end())? {
        0.0 => Ok(1.0),
        _ => m.float_or(key, 1.0, FACTOR),
    }
}

/// The context before it was extended.
pub(super) fn original(m: &Metadata<'_>) -> Result<usize, ModelError> {
    m.count_or("rope.scaling.original_context_length", m.context()?, 1..=CONTEXT_MAX)
}

/// With the paper's bounds: the file's `yarn_beta_*` are not obeyed, as llama.cpp, which files are made for, ignores them.
fn yarn(m: &Metadata<'_>, factor: f32) -> Result<RopeScaling, ModelError> {
    Ok(RopeScaling::Yarn { factor, original: original(m)?, beta_fast: 32.0, beta_slow: 1.0 })
}

/// 0.1 · m · ln(factor) + 1, where m is 1 in the paper (Peng et al., 2023, §3.4).
fn yarn_magnitude(factor: f32, multiplier: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 }
}
