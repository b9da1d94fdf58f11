//! RoPE scalings, from the keys `rope.scaling.*` and the tensors that come with some.

use std::ops::RangeInclusive;

use super::{
    ModelError,
    metadata::{CONTEXT_MAX, Metadata},
    tensors,
};
use crate::spec::RopeScaling;

const FACTOR: RangeInclusive<f32> = 1e-3..=1e6;
const MAGNITUDE: RangeInclusive<f32> = 1e-3..=1e3;

/// How frequencies are changed, and the factor on cosines and sines.
pub(super) fn scaling(m: &Metadata<'_>) -> Result<(RopeScaling, f32), ModelError> {
    const KIND: &str = "rope.scaling.type";
    let kind = m.text_or(KIND, "linear")?;
    let factor = factor(m)?;
    let magnitude = m.float_or("rope.scaling.attn_factor", 1.0, MAGNITUDE)?;
    let scaling = match kind {
        "yarn" => return Ok((yarn(m, factor)?, magnitude * yarn_magnitude(factor))),
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

/// What positions are divided by; ggml takes 0 for no scaling.
fn factor(m: &Metadata<'_>) -> Result<f32, ModelError> {
    let key = if m.has("rope.scaling.factor") { "rope.scaling.factor" } else { "rope.scale_linear" };
    match m.float_or(key, 1.0, 0.0..=*FACTOR.end())? {
        0.0 => Ok(1.0),
        _ => m.float_or(key, 1.0, FACTOR),
    }
}

/// The context before it was extended.
fn original(m: &Metadata<'_>) -> Result<usize, ModelError> {
    m.count_or("rope.scaling.original_context_length", m.context()?, 1..=CONTEXT_MAX)
}

/// With the paper's bounds: the file's `yarn_beta_*` are not obeyed, as llama.cpp, which files are made for, ignores them.
fn yarn(m: &Metadata<'_>, factor: f32) -> Result<RopeScaling, ModelError> {
    Ok(RopeScaling::Yarn { factor, original: original(m)?, beta_fast: 32.0, beta_slow: 1.0 })
}

/// 0.1 ln(factor) + 1 (Peng et al., 2023, §3.4).
fn yarn_magnitude(factor: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}
