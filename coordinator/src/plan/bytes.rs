//! Sizes as people write and read them: `8GB`, `512MiB`, `98.4 MB`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// A number of bytes, shown with three digits and a decimal unit.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each unit ends where it would round to 1000 of itself.
        let Some((unit, size)) = SHOWN.into_iter().find(|(_, size)| self.0 as f64 >= size * 0.9995) else {
            return f.pad(&format!("{} B", self.0));
        };
        let value = self.0 as f64 / size;
        let digits = if value < 9.995 {
            2
        } else if value < 99.95 {
            1
        } else {
            0
        };
        f.pad(&format!("{value:.digits$} {unit}"))
    }
}

impl FromStr for Bytes {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "t" | "tb" => 1e12,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(bad()),
        };
        let bytes = number.parse::<f64>().map_err(|_| bad())? * factor;
        // A float converts to an integer by saturating, so the bound is all there is to check.
        if (1.0..1e18).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(bad()) }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A text that is no size.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no size: write it like 800MB, 8GB or 512MiB")]
pub struct BadSize {
    /// What was written.
    pub text: String,
}

const SHOWN: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_three_digits() {
        let shown: Vec<_> =
            [0, 999, 1_000, 98_362_432, 999_600, 1_117_320_768].iter().map(|&n| Bytes(n).to_string()).collect();
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "98.4 MB", "1.00 MB", "1.12 GB"]);
    }

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [("8GB", 8_000_000_000), ("1.5 GiB", 1_610_612_736), ("512m", 512_000_000), ("77", 77)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GB", "8 apples", "-1GB", "1e3MB", "0", "999999999999TB", "1..5GB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
