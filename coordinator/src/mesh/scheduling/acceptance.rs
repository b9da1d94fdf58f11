//! How often drafts were right of late.

/// Drafted tokens that were right, and those that were tried; earlier ones count less and less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acceptance {
    right: f64,
    tried: f64,
    /// The share that is right, before any was tried.
    expected: f64,
}

/// How much of the past counts after each verification.
const FADING: f64 = 0.85;
/// How many drafted tokens count as tried before any was.
const PRIOR: f64 = 2.0;

impl Acceptance {
    /// Of drafts that nobody has tried yet, and of which such a share is expected to be right.
    pub(crate) fn expecting(share: f64) -> Self {
        Self { right: 0.0, tried: 0.0, expected: share }
    }

    /// Learns that of `drafted` tokens the first `right` were right.
    pub(crate) fn verified(&mut self, drafted: usize, right: usize) {
        if drafted > 0 {
            // What comes after the first wrong one was not tried.
            self.tried = FADING * self.tried + (right + usize::from(right < drafted)) as f64;
            self.right = FADING * self.right + right as f64;
        }
    }

    /// How likely the next drafted token is right, given that those before it were.
    pub(crate) fn share(&self) -> f64 {
        (self.right + PRIOR * self.expected) / (self.tried + PRIOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_was_right() {
        let mut acceptance = Acceptance::expecting(0.6);
        assert!((acceptance.share() - 0.6).abs() < 1e-9);
        (0..10).for_each(|_| acceptance.verified(4, 0));
        assert!(acceptance.share() < 0.2);
        (0..10).for_each(|_| acceptance.verified(4, 4));
        assert!(acceptance.share() > 0.8);
        let before = acceptance.share();
        acceptance.verified(0, 0);
        assert_eq!(acceptance.share(), before);
    }
}
