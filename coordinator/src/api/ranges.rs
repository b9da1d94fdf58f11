//! Numbers that clients send, and what they may be.

use std::{fmt::Display, ops::RangeInclusive};

use super::error::ApiError;

/// A whole number in its range, if it was sent.
pub(crate) fn integer(name: &str, value: Option<i64>, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) && *range.end() == i64::MAX => {
            Err(ApiError::invalid(name, format!("'{name}' is {value}, want at least {}", range.start())))
        }
        Some(value) if !range.contains(&value) => Err(out_of_range(name, value, &range)),
        value => Ok(value),
    }
}

/// A number in its range, or the default if none was sent.
pub(crate) fn real(name: &str, value: Option<f64>, range: RangeInclusive<f64>, default: f32) -> Result<f32, ApiError> {
    match value {
        None => Ok(default),
        Some(value) if !range.contains(&value) => Err(out_of_range(name, value, &range)),
        #[expect(clippy::cast_possible_truncation, reason = "the range is one of f32, only precision is lost")]
        Some(value) => Ok(value as f32),
    }
}

fn out_of_range<T: Display>(name: &str, value: T, range: &RangeInclusive<T>) -> ApiError {
    ApiError::invalid(name, format!("'{name}' is {value}, want {} to {}", range.start(), range.end()))
}
