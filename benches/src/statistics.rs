//! Medians, ratios and means of what was measured.

/// Times of one contender in seconds, one per repeat; never empty once it has been measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Notes one more.
    pub fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    /// All, in the order measured.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// The middle one, or the mean of the two in the middle; NaN of none.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// What the share `q` of them lies below, between the two nearest ones; NaN of none.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let at = q.clamp(0.0, 1.0) * last as f64;
        // Both lie within 0..=last.
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// The shortest.
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The longest.
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }
}

impl Extend<f64> for Samples {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, seconds: I) {
        self.0.extend(seconds);
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(seconds: I) -> Self {
        Self(seconds.into_iter().collect())
    }
}

/// The geometric mean of ratios; `None` of none.
pub fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    let logs: f64 = ratios.iter().map(|r| r.ln()).sum();
    (!ratios.is_empty()).then(|| (logs / ratios.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_in_the_middle() {
        let samples = |seconds: &[f64]| seconds.iter().copied().collect::<Samples>();
        assert_eq!(samples(&[3.0, 1.0, 10.0]).median(), 3.0);
        assert_eq!(samples(&[4.0, 1.0, 2.0, 10.0]).median(), 3.0);
        assert!(samples(&[]).median().is_nan());
        let hundred: Samples = (0..=100).rev().map(f64::from).collect();
        assert!((hundred.quantile(0.99) - 99.0).abs() < 1e-9);
        assert!((samples(&[1.0, 2.0]).quantile(0.99) - 1.99).abs() < 1e-9);
        assert_eq!((hundred.quantile(0.0), hundred.quantile(1.0)), (0.0, 100.0));
        assert_eq!((samples(&[2.0, 1.0, 3.0]).min(), samples(&[2.0, 1.0, 3.0]).max()), (1.0, 3.0));
    }

    #[test]
    fn ratios_are_averaged_geometrically() {
        assert!((geometric_mean(&[2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }
}
