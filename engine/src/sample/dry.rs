//! DRY ("don't repeat yourself"): what would lengthen a repetition is penalised, as llama.cpp does it.

use std::collections::HashMap;

use crate::step::TokenSet;

/// What keeps a text from repeating itself word for word.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    /// What is subtracted from the logit of a token that lengthens a repetition of `allowed_length`.
    pub multiplier: f32,
    /// By what factor that grows with each token of the repetition beyond those; at least 1.
    pub base: f32,
    /// How many tokens may be repeated before the next one is penalised.
    pub allowed_length: usize,
    /// How many of the session's last ids (prompt included) are looked at.
    pub window: usize,
    /// Tokens that no repetition goes across, and that are never penalised.
    pub breakers: TokenSet,
    /// Tokens that no repetition goes across where they follow each other.
    pub breaking_sequences: Vec<Vec<u32>>,
}

impl Dry {
    /// What is to be subtracted from which ids' logits, in the order of the ids.
    pub(super) fn penalties(&self, history: &[u32]) -> Vec<(u32, f32)> {
        // The last id first.
        let back: Vec<u32> = history.iter().rev().take(self.window).copied().collect();
        let longest = self.unbroken(&back);
        if back.len() <= self.allowed_length || longest < self.allowed_length {
            return Vec::new();
        }
        let mut lengths = HashMap::<u32, usize>::new();
        for (place, same) in repeats(&back).into_iter().enumerate().skip(1) {
            let (followed_by, length) = (back[place - 1], same.min(longest));
            if length >= self.allowed_length && !self.breakers.contains(followed_by) {
                let known = lengths.entry(followed_by).or_default();
                *known = length.max(*known);
            }
        }
        let penalty = |length: usize| self.multiplier * power(self.base, length - self.allowed_length);
        let mut penalties: Vec<_> = lengths.into_iter().map(|(id, length)| (id, penalty(length))).collect();
        penalties.sort_unstable_by_key(|(id, _)| *id);
        penalties
    }

    /// How many of the last ids stand behind what a repetition does not go across.
    fn unbroken(&self, back: &[u32]) -> usize {
        for (place, id) in back.iter().enumerate() {
            // The ids from this place to the last one begin with the rest of the sequence.
            let rest = |sequence: &&Vec<u32>| {
                let (head, tail) = sequence.split_first()?;
                let follows = tail.iter().enumerate().all(|(at, id)| at < place && back[place - 1 - at] == *id);
                (head == id && follows).then_some(tail.len())
            };
            let sequence = self.breaking_sequences.iter().filter_map(|sequence| rest(&sequence)).max();
            let alone = self.breakers.contains(*id).then_some(0);
            if let Some(tail) = sequence.max(alone) {
                return place - tail;
            }
        }
        back.len()
    }
}

/// For each place how many ids from there on are those from the first one on (the Z-function), in linear time.
fn repeats(ids: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; ids.len()];
    // The stretch known to repeat the beginning that reaches farthest.
    let (mut start, mut end) = (0, 0);
    for place in 1..ids.len() {
        let known = if place < end { lengths[place - start].min(end - place) } else { 0 };
        let more = ids[place + known..].iter().zip(&ids[known..]).take_while(|(a, b)| a == b).count();
        lengths[place] = known + more;
        if place + known + more > end {
            (start, end) = (place, place + known + more);
        }
    }
    lengths
}

/// base ^ exponent, of which what is too large to matter is cut off; by multiplications alone, which are the same everywhere.
fn power(base: f32, mut exponent: usize) -> f32 {
    let (mut result, mut square) = (1.0_f64, f64::from(base));
    while exponent > 0 {
        if exponent % 2 == 1 {
            result = (result * square).min(PENALTY_MOST);
        }
        square = (square * square).min(PENALTY_MOST);
        exponent /= 2;
    }
    result as f32
}

/// Far above any difference of logits, and far below what a float holds.
const PENALTY_MOST: f64 = 1e30;

#[cfg(test)]
mod tests {
    use super::*;

    fn dry() -> Dry {
        Dry {
            multiplier: 1.0,
            base: 2.0,
            allowed_length: 2,
            window: 64,
            breakers: TokenSet::default(),
            breaking_sequences: Vec::new(),
        }
    }

    fn set(ids: &[u32]) -> TokenSet {
        let mut bits = vec![0; 16];
        ids.iter().for_each(|id| bits[*id as usize / 8] |= 1 << (id % 8));
        TokenSet::of_bits(bits)
    }

    #[test]
    fn repeats_are_those_of_their_definition() {
        for seed in 0..200_u32 {
            let ids: Vec<u32> =
                (0..seed % 50).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20) % 3).collect();
            let plain = |place: usize| ids[place..].iter().zip(&ids).take_while(|(a, b)| a == b).count();
            let found = repeats(&ids);
            assert!((1..ids.len()).all(|place| found[place] == plain(place)), "{ids:?}: {found:?}");
        }
    }

    #[test]
    fn what_would_lengthen_a_repetition_is_penalised_by_its_length() {
        // 1 2 3 stands at the end and at the beginning, where 4 follows; 2 3 alone is followed by 5.
        let history = [1, 2, 3, 4, 9, 2, 3, 5, 8, 1, 2, 3];
        assert_eq!(dry().penalties(&history), [(4, 2.0), (5, 1.0)]);
        assert_eq!(Dry { allowed_length: 3, ..dry() }.penalties(&history), [(4, 1.0)]);
        assert_eq!(Dry { allowed_length: 4, ..dry() }.penalties(&history), []);
        assert_eq!(Dry { multiplier: 0.5, base: 3.0, ..dry() }.penalties(&history), [(4, 1.5), (5, 0.5)]);
        // The first of the two lies outside the window.
        assert_eq!(Dry { window: 8, ..dry() }.penalties(&history), [(5, 1.0)]);
        assert_eq!(Dry { window: 0, ..dry() }.penalties(&history), []);
        let run = [7; 40];
        assert_eq!(dry().penalties(&run), [(7, 2.0_f32.powi(37))]);
        assert_eq!(Dry { base: 1e9, ..dry() }.penalties(&run), [(7, 1e30)]);
        assert_eq!(Dry { base: 1.0, ..dry() }.penalties(&run), [(7, 1.0)]);
    }

    #[test]
    fn repetitions_do_not_go_across_breakers() {
        let history = [1, 2, 3, 4, 9, 1, 2, 3];
        let breaking = |ids: &[u32]| Dry { breakers: set(ids), ..dry() }.penalties(&history);
        assert_eq!(breaking(&[]), [(4, 2.0)]);
        assert_eq!(breaking(&[1]), [(4, 1.0)], "two of the three stand behind it");
        assert_eq!(breaking(&[2]), []);
        assert_eq!(breaking(&[4]), [], "what breaks is not penalised itself");
        let sequences = |sequences: &[&[u32]]| {
            let breaking_sequences = sequences.iter().map(|sequence| sequence.to_vec()).collect();
            Dry { breaking_sequences, ..dry() }.penalties(&history)
        };
        assert_eq!(sequences(&[&[9, 1]]), [(4, 1.0)]);
        assert_eq!(sequences(&[&[9, 1, 2]]), []);
        assert_eq!(sequences(&[&[9, 2], &[3, 2]]), [(4, 2.0)], "they do not stand there");
        assert_eq!(sequences(&[&[4]]), [(4, 2.0)], "a sequence of one is a breaker for others to name");
    }
}
