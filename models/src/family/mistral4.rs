//! Mistral 4: a DeepSeek V3 whose queries grow with their position, and whose files hold each expert's gate and up as one.

use super::{Decoder, ModelError, deepseek2, metadata::Metadata};

/// What the file's multiplier of YaRN's magnitude is, a tenth of the published one: with another one, llama.cpp computes something
/// else here than in a DeepSeek.
const MULTIPLIER: f32 = 0.1;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    const KEY: &str = "rope.scaling.yarn_log_multiplier";
    let multiplier = m.float_or(KEY, MULTIPLIER, 0.0..=1e3)?;
    if multiplier != MULTIPLIER && multiplier != 0.0 {
        return Err(m.unsupported(KEY, multiplier.to_string(), &MULTIPLIER.to_string()));
    }
    deepseek2::decoder(m)
}
