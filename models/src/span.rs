//! Spans of time as people write them: `90s`, `30m`, `12h`, `7d`. One notation for every flag.

use std::{str::FromStr, time::Duration};

/// A span of time of at least a second, written as a whole number and a unit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TimeSpan(pub Duration);

/// A text that is no span of time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a time such as 90s, 30m, 12h or 7d is needed")]
pub struct SpanError;

impl FromStr for TimeSpan {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).ok_or(SpanError)?);
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(SpanError),
        };
        let time = number.parse::<u32>().ok().filter(|&n| n > 0).ok_or(SpanError)?;
        Ok(Self(Duration::from_secs(u64::from(time) * seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(TimeSpan(Duration::from_secs(seconds))));
        }
        for text in ["", "7", "d", "0d", "-1d", "1.5h", "7 d", "7D", "5000000000s", "1w"] {
            assert_eq!(text.parse::<TimeSpan>(), Err(SpanError), "{text}");
        }
    }
}
