//! Between points that are known, and beyond them.

/// The value at `x` of the curve through `points`, which come in increasing x: at the first point before it, on a line
/// between two, and in proportion to x beyond the last. `None` of no points.
pub fn at(points: impl IntoIterator<Item = (f64, f64)>, x: f64) -> Option<f64> {
    let mut below: Option<(f64, f64)> = None;
    for (known, value) in points {
        if known >= x {
            let Some((low, at_low)) = below else { return Some(value) };
            return Some(at_low + (value - at_low) * (x - low) / (known - low));
        }
        below = Some((known, value));
    }
    below.map(|(known, value)| value * x / known)
}

#[cfg(test)]
mod tests {
    use super::at;

    #[test]
    fn it_is_a_line_between_points_and_in_proportion_beyond_them() {
        let points = [(1.0, 10.0), (8.0, 30.0)];
        let found = [0.5, 1.0, 4.5, 8.0, 16.0].map(|x| at(points, x));
        assert_eq!(found, [10.0, 10.0, 20.0, 30.0, 60.0].map(Some));
        assert_eq!(at([], 1.0), None);
    }
}
