//! Mistral Small 3.1 and Ministral 3: a Llama whose queries may grow with their position, and whose file says how YaRN is done.

use super::{Decoder, ModelError, dense, llama, metadata::Metadata, rope};
use crate::spec::Temperature;

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let mut layers = llama::layers(m)?;
    let temperature = match m.float_or("attention.temperature_scale", 0.0, 0.0..=1e3)? {
        0.0 => None,
        scale => Some(Temperature { scale, offset: 0, length: rope::original(m)? }),
    };
    for attention in dense::attentions(&mut layers) {
        attention.temperature = temperature;
        attention.rope.iter_mut().try_for_each(|rope| rope::yarn_as_said(m, rope))?;
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}
