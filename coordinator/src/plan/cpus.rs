//! How fast the memory of well-known machines is, for plans about machines that nobody has at hand.

/// Bytes a second that the makers state, by a part of the CPU's name in lower case; of two that fit, the longer one counts.
const BANDWIDTHS: [(&str, f64); 30] = [
    ("apple m1", 68e9),
    ("apple m1 pro", 200e9),
    ("apple m1 max", 400e9),
    ("apple m1 ultra", 800e9),
    ("apple m2", 100e9),
    ("apple m2 pro", 200e9),
    ("apple m2 max", 400e9),
    ("apple m2 ultra", 800e9),
    ("apple m3", 100e9),
    ("apple m3 pro", 150e9),
    ("apple m3 max", 400e9),
    ("apple m3 ultra", 819e9),
    ("apple m4", 120e9),
    ("apple m4 pro", 273e9),
    ("apple m4 max", 546e9),
    ("core i7-8700", 41e9),
    ("core i7-12700", 76e9),
    ("core i9-13900", 89e9),
    ("core i9-14900", 89e9),
    ("epyc 7763", 204e9),
    ("epyc 9654", 460e9),
    ("raspberry pi 4", 12e9),
    ("raspberry pi 5", 17e9),
    ("ryzen 5 3600", 51e9),
    ("ryzen 7 5800x", 51e9),
    ("ryzen 7 7700", 83e9),
    ("ryzen 9 5950x", 51e9),
    ("ryzen 9 7950x", 83e9),
    ("ryzen 9 9950x", 89e9),
    ("ryzen ai max", 256e9),
];

/// What part of that a program gets.
const SHARE: f64 = 0.75;

/// Bytes a second that a program can expect of this CPU's memory, if it is a known one.
pub(super) fn bytes_per_s(cpu: &str) -> Option<f64> {
    let cpu = cpu.to_lowercase();
    let known = BANDWIDTHS.iter().filter(|(name, _)| cpu.contains(name));
    known.max_by_key(|(name, _)| name.len()).map(|(_, stated)| stated * SHARE)
}

/// The names that are known.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BANDWIDTHS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_that_fits_counts() {
        assert_eq!(bytes_per_s("Apple M4 Max (16 cores)"), Some(546e9 * SHARE));
        assert_eq!(bytes_per_s("AMD Ryzen 9 7950X3D"), Some(83e9 * SHARE));
        assert_eq!(bytes_per_s("Pentium II"), None);
    }
}
