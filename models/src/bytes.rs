//! Numbers of bytes as people write and read them: `4G`, `512MiB`, `98.4 MB`. One notation for every flag and file.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

/// A number of bytes. It is written as a number with a unit, a space between them or not: a unit (`k`, `M`, `G`, `T`, in
/// either case, a `B` after it or not) stands for a power of 1000, or of 1024 with an `i` (`4Gi`, `4GiB`); without one the
/// number is bytes. It is shown with three digits and a decimal unit.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
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

impl FromStr for ByteCount {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let refused = || SizeError { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let prefix = unit.strip_suffix('b').unwrap_or(&unit);
        let (prefix, step) = prefix.strip_suffix('i').map_or((prefix, 1000), |binary| (binary, 1024));
        let power = ["", "k", "m", "g", "t"].iter().position(|&known| known == prefix).ok_or_else(refused)?;
        // `i` alone is no unit.
        if power == 0 && step == 1024 {
            return Err(refused());
        }
        let factor = (0..power).fold(1.0, |factor, _| factor * f64::from(step));
        let bytes = number.parse::<f64>().map_err(|_| refused())? * factor;
        // A float converts to an integer by saturating, so the bound is all there is to check.
        if (1.0..1e18).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(refused()) }
    }
}

impl<'de> Deserialize<'de> for ByteCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Written)
    }
}

/// A text that is no number of bytes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no size: write it like 800MB, 8GB or 512MiB")]
pub struct SizeError {
    /// What was written.
    pub text: String,
}

/// Reads a size from a file's string. A bare number is refused: `memory = 8` hardly means eight bytes.
struct Written;

impl de::Visitor<'_> for Written {
    type Value = ByteCount;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size in quotes, such as \"8GB\" or \"512MiB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteCount, E> {
        text.parse().map_err(E::custom)
    }
}

const SHOWN: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_three_digits() {
        let shown: Vec<_> =
            [0, 999, 1_000, 98_362_432, 999_600, 1_117_320_768].iter().map(|&n| ByteCount(n).to_string()).collect();
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "98.4 MB", "1.00 MB", "1.12 GB"]);
    }

    #[test]
    fn reads_what_people_write() {
        for (bytes, written) in [
            (4_000_000_000, &["4G", "4g", "4GB", "4 GB", "4gb", "4.0G", "4000M", "4000000000", "4000000000B"][..]),
            (4 << 30, &["4Gi", "4gi", "4GiB", "4 GiB", "4gib", "4096Mi", "4294967296"]),
            (512_000_000, &["512M", "512m", "512MB", "0.512G", "512000k"]),
            (5 << 29, &["2.5GiB", " 2.5Gi "]),
            (1024, &["1 KiB", "1Ki", "1024 b"]),
            (2_000_000_000_000, &["2T", "2TB"]),
            (2 << 40, &["2Ti", "2TiB"]),
        ] {
            for text in written {
                assert_eq!(text.parse(), Ok(ByteCount(bytes)), "{text}");
            }
        }
        for text in [
            "",
            "G",
            "GB",
            "8 apples",
            "4X",
            "-1G",
            "-1GB",
            "1e3MB",
            "1e30",
            "0",
            "99999999999T",
            "999999999999TB",
            "1..5GB",
            "1.2.3G",
            "4i",
            "4iB",
            "4GBB",
            "4Gib4",
            "4 G B",
        ] {
            assert_eq!(text.parse::<ByteCount>(), Err(SizeError { text: text.to_owned() }), "{text}");
        }
    }
}
