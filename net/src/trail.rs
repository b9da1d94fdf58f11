//! The trail of a session: a hash of its ids so far, by which two ends notice that they do not mean the same text.
//!
//! It finds mistakes and altered ids. It is no signature: anybody can compute it, and it says nothing about activations.

/// A hash of a session's first ids.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Trail(pub u64);

/// The trail after each position that a session holds.
#[derive(Clone, Debug, Default)]
pub struct Trails(Vec<Trail>);

impl Trail {
    /// The trail with one more id.
    #[must_use]
    pub fn then(self, id: u32) -> Self {
        // The finalizer of SplitMix64: a change of any bit changes half of the others.
        let z = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15).rotate_left(32) ^ u64::from(id);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(z ^ (z >> 31))
    }
}

impl Trails {
    /// How many positions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts ids at `position` and after, in the place of what was there; the trail of all ids up to the last of them.
    /// `None`, where ids before `position` are missing.
    pub fn write(&mut self, position: usize, ids: &[u32]) -> Option<Trail> {
        let mut trail = self.after(position)?;
        self.0.truncate(position);
        self.0.extend(ids.iter().map(|&id| {
            trail = trail.then(id);
            trail
        }));
        Some(trail)
    }

    /// The trail of the first `positions` ids.
    pub fn after(&self, positions: usize) -> Option<Trail> {
        match positions.checked_sub(1) {
            None => Some(Trail::default()),
            Some(last) => self.0.get(last).copied(),
        }
    }

    /// Those of the first `positions`, or of all where there are fewer.
    #[must_use]
    pub fn beginning(&self, positions: usize) -> Self {
        Self(self.0[..positions.min(self.0.len())].to_vec())
    }

    /// Forgets what is beyond the first `positions`.
    pub fn truncate(&mut self, positions: usize) {
        self.0.truncate(positions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_is_that_of_the_ids_however_they_came() {
        let ids: Vec<u32> = (0..200).map(|i| i * i % 97).collect();
        let mut whole = Trails::default();
        let end = whole.write(0, &ids).unwrap();
        let mut parts = Trails::default();
        parts.write(0, &ids[..70]);
        // A rejected draft is overwritten.
        parts.write(70, &[1, 2, 3]);
        assert_ne!(parts.after(71), whole.after(71));
        parts.write(70, &ids[70..100]);
        let mut forked = parts.beginning(64);
        assert_eq!((forked.len(), forked.write(64, &ids[64..])), (64, Some(end)));
        parts.truncate(65);
        assert_eq!((parts.after(65), parts.after(66)), (whole.after(65), None));
        assert_eq!((parts.write(66, &[1]), parts.len()), (None, 65), "a gap changes nothing");
    }

    #[test]
    fn every_id_and_its_place_count() {
        let trail = |ids: &[u32]| Trails::default().write(0, ids).unwrap();
        let base = trail(&[1, 2, 3]);
        for other in [&[1, 2][..], &[1, 3, 2], &[0, 2, 3], &[1, 2, 3, 0], &[0, 1, 2, 3], &[1, 2, 0x8000_0003]] {
            assert_ne!(trail(other), base, "{other:?}");
        }
        // As it is on the wire: a change here is a change of its version.
        assert_eq!((trail(&[]), trail(&[0])), (Trail(0), Trail(0).then(0)));
    }
}
