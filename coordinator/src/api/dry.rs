//! DRY, which keeps a text from repeating itself: its parameters, as llama-server has them.

use qmesh_net::Dry;
use serde::Deserialize;

use super::{
    error::ApiError,
    ranges::{integer, real},
};
use crate::text::{DryRules, TextModel};

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
        let usual = DryRules::default();
        let most = f64::from(DryRules::MOST);
        let count = |name, value, least: i64| integer(name, value, least..=i64::from(u32::MAX));
        let window = count("dry_penalty_last_n", self.dry_penalty_last_n, -1)?;
        let allowed_length = count("dry_allowed_length", self.dry_allowed_length, 0)?;
        let rules = DryRules {
            multiplier: real("dry_multiplier", self.dry_multiplier, 0.0..=most, usual.multiplier)?,
            base: real("dry_base", self.dry_base, 1.0..=most, usual.base)?,
            allowed_length: allowed_length.and_then(|n| u32::try_from(n).ok()).unwrap_or(usual.allowed_length),
            window: window.map_or(usual.window, |last| u32::try_from(last).ok()),
            breakers: self.dry_sequence_breakers.unwrap_or(usual.breakers),
        };
        let wrong = |error| ApiError::invalid("dry_sequence_breakers", format!("'dry_sequence_breakers': {error}"));
        text.dry(&rules).map_err(wrong)
    }
}
