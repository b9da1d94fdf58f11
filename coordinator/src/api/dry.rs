//! DRY, which keeps a text from repeating itself: its parameters, as llama-server has them.

use qmesh_net::Dry;
use serde::Deserialize;

use super::{
    error::ApiError,
    ranges::{integer, real},
};
use crate::text::{Breakers, TextModel};

/// Most texts that break repetitions.
const BREAKERS: usize = 16;
/// Most bytes of one.
const BREAKER_BYTES: usize = 40;
/// What breaks repetitions where a client does not say.
const USUAL_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];
/// Defaults of llama-server's.
const BASE: f32 = 1.75;
const ALLOWED_LENGTH: i64 = 2;
const WINDOW: i64 = 64;

/// The parameters as they were sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct DryParams {
    dry_multiplier: Option<f64>,
    dry_base: Option<f64>,
    dry_allowed_length: Option<i64>,
    dry_penalty_last_n: Option<i64>,
    dry_sequence_breakers: Option<Vec<String>>,
}

impl DryParams {
    /// What they mean to the mesh; nothing where they are off. Blocks: what breaks repetitions is looked for in all of the
    /// vocabulary.
    ///
    /// # Errors
    /// `Invalid` with the parameter's name.
    pub(crate) fn read(self, text: &TextModel) -> Result<Option<Dry>, ApiError> {
        let multiplier = real("dry_multiplier", self.dry_multiplier, 0.0..=100.0, 0.0)?;
        let base = real("dry_base", self.dry_base, 1.0..=100.0, BASE)?;
        let count = |name, value, least: i64| integer(name, value, least..=i64::from(u32::MAX));
        let allowed_length = count("dry_allowed_length", self.dry_allowed_length, 0)?.unwrap_or(ALLOWED_LENGTH);
        let window = count("dry_penalty_last_n", self.dry_penalty_last_n, -1)?.unwrap_or(WINDOW);
        let texts = self.dry_sequence_breakers.unwrap_or_else(|| USUAL_BREAKERS.map(str::to_owned).into());
        let wrong = |text: &str| ApiError::invalid("dry_sequence_breakers", text);
        if !(1..=BREAKERS).contains(&texts.len()) {
            return Err(wrong(&format!("'dry_sequence_breakers' takes 1 to {BREAKERS} strings")));
        }
        if texts.iter().any(|text| !(1..=BREAKER_BYTES).contains(&text.len())) {
            return Err(wrong(&format!(
                "every string of 'dry_sequence_breakers' must have 1 to {BREAKER_BYTES} bytes"
            )));
        }
        if multiplier == 0.0 || window == 0 {
            return Ok(None);
        }
        let ways = || wrong("there are too many ways to write 'dry_sequence_breakers' in tokens: take shorter strings");
        let Breakers { tokens, sequences } = text.breakers(&texts).ok_or_else(ways)?;
        let context = u32::try_from(text.context).unwrap_or(u32::MAX);
        Ok(Some(Dry {
            multiplier,
            base,
            allowed_length: u32::try_from(allowed_length).unwrap_or(u32::MAX),
            window: u32::try_from(window).unwrap_or(context).min(context),
            breakers: tokens,
            breaking_sequences: sequences,
        }))
    }
}
