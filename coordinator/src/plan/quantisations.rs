//! Which quantisation of a model some workers could hold.

use std::fmt;

use qmesh_models::bytes::ByteCount;
use serde::Serialize;

use super::{PlanError, PlanInput, fits, solve};

/// The largest of some quantisations that fits, and what the next one lacks. Sizes of files are all that is known of them:
/// their matrices are taken to be larger or smaller than those of the model at hand by the same factor.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Fitting {
    /// The largest that fits, if one does.
    pub fits: Option<Quantisation>,
    /// The smallest of those that do not.
    pub too_large: Option<Quantisation>,
    /// About how much memory that one lacks; 0 where there is enough and no cut into whole layers fits.
    pub missing_bytes: u64,
}

/// One quantisation of a model.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Quantisation {
    /// What asks for it, after the colon of a reference.
    pub name: String,
    /// Of its files.
    pub bytes: u64,
}

/// Which of the quantisations `offered`, all of the shape that the model of `input` has, its workers could hold.
pub fn fitting(input: &PlanInput<'_>, mut offered: Vec<Quantisation>) -> Fitting {
    offered.sort_by_key(|quantisation| quantisation.bytes);
    let mut found = Fitting::default();
    for quantisation in offered {
        if let Some(missing_bytes) = missing(input, quantisation.bytes) {
            return Fitting { too_large: Some(quantisation), missing_bytes, ..found };
        }
        found.fits = Some(quantisation);
    }
    found
}

impl fmt::Display for Fitting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fits {
            Some(Quantisation { name, bytes }) => {
                write!(f, "{name} is the largest of the repository that fits ({})", ByteCount(*bytes))?;
            }
            None => write!(f, "nothing of the repository fits")?,
        }
        match &self.too_large {
            Some(next) if self.missing_bytes > 0 => {
                write!(f, "; {} needs about {} more", next.name, ByteCount(self.missing_bytes))
            }
            Some(next) => write!(f, "; {} fits into no cut of whole layers", next.name),
            None => Ok(()),
        }
    }
}

/// About how much memory the model of `input` lacks, were its files so large; `None` if it fits.
fn missing(input: &PlanInput<'_>, bytes: u64) -> Option<u64> {
    let own: u64 = input.spec.tensors.iter().map(|tensor| tensor.bytes).sum();
    let factor = bytes as f64 / own.max(1) as f64;
    let mut spec = input.spec.clone();
    for matrix in spec.tensors.iter_mut().filter(|tensor| tensor.rows > 1) {
        matrix.bytes = (matrix.bytes as f64 * factor).round() as u64;
    }
    let input = PlanInput { spec: &spec, cut: None, pins: Default::default(), ..input.clone() };
    if fits(&input) {
        return None;
    }
    match solve(&input) {
        Err(PlanError::DoesNotFit(shortfall)) => Some(shortfall.needed_bytes.saturating_sub(shortfall.available_bytes)),
        Ok(_) | Err(_) => Some(0),
    }
}
