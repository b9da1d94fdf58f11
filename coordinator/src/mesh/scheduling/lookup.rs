//! Drafts from a sequence's own text: what followed the last time that it ended like this.
//!
//! The last stage verifies drafts by sampling after each of their rows; the noise is keyed by position, so the text is
//! the same with drafts and without. A draft costs its rows, and gains a token for each row that was right.

use std::collections::HashMap;

/// Finds repetitions in the ids of one sequence.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// The end of the latest occurrence of every run of [`GRAM`] ids.
    latest: HashMap<[u32; GRAM], usize>,
    /// For each end, that of the occurrence before it.
    earlier: Vec<Option<usize>>,
}

/// Ids that must have occurred before.
const GRAM: usize = 3;
/// Earlier occurrences that are looked at.
const OCCURRENCES: usize = 16;
/// A match this long is as good as any.
const MATCH_MOST: usize = 32;
impl Lookup {
    /// What may follow `ids`, at most `most` ids of it; nothing where their ending has not occurred before.
    pub(crate) fn draft(&mut self, ids: &[u32], most: usize) -> Vec<u32> {
        // Indexing can wait until something is looked up.
        if most == 0 {
            return Vec::new();
        }
        self.index(ids);
        let Some(follows) = self.longest_match(ids) else { return Vec::new() };
        // A match may reach up to the end of the ids: then the draft goes on with itself, and repeats with that period.
        let period = ids.len() - follows;
        let mut draft = Vec::with_capacity(most);
        for i in 0..most {
            let next = if i < period { ids[follows + i] } else { draft[i - period] };
            draft.push(next);
        }
        draft
    }

    /// Enters all runs of `ids` but the last one, which nothing follows yet.
    fn index(&mut self, ids: &[u32]) {
        // An end is the index of the id that followed.
        self.earlier.resize(self.earlier.len().max(GRAM), None);
        for end in self.earlier.len()..ids.len() {
            let Some(gram) = ids[..end].last_chunk::<GRAM>() else { continue };
            self.earlier.push(self.latest.insert(*gram, end));
        }
    }

    /// Where the text goes on after an earlier occurrence of the ending of `ids`: of the latest ones, the one that
    /// matches the most ids backwards.
    fn longest_match(&self, ids: &[u32]) -> Option<usize> {
        let mut next = self.latest.get(ids.last_chunk::<GRAM>()?).copied();
        let mut best = None;
        for _ in 0..OCCURRENCES {
            let Some(end) = next else { break };
            let backwards = ids[..end].iter().rev().zip(ids.iter().rev());
            let length = backwards.take(MATCH_MOST).take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(longest, _)| length > longest) {
                best = Some((length, end));
            }
            next = self.earlier[end];
        }
        best.map(|(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_drafted() {
        let mut lookup = Lookup::default();
        let ids = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        assert_eq!(lookup.draft(&ids, 4), [4, 5, 6, 9]);
        assert_eq!(lookup.draft(&[&ids[..], &[4]].concat(), 2), [5, 6]);
        assert_eq!(lookup.draft(&[&ids[..], &[4, 7]].concat(), 2), [0; 0]);
        assert_eq!(Lookup::default().draft(&[1, 2, 3], 4), [0; 0]);
        assert_eq!(Lookup::default().draft(&[], 4), [0; 0]);
    }

    #[test]
    fn the_longest_match_wins_and_the_latest_of_equals() {
        let ids = [7, 1, 2, 3, 50, 8, 1, 2, 3, 60, 7, 1, 2, 3];
        assert_eq!(Lookup::default().draft(&ids, 1), [50]);
        let ids = [1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3];
        assert_eq!(Lookup::default().draft(&ids, 1), [60]);
    }

    #[test]
    fn a_period_goes_on() {
        assert_eq!(Lookup::default().draft(&[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
        assert_eq!(Lookup::default().draft(&[4, 4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn drafts_grow_with_the_text_as_if_made_anew() {
        let mut random = 1_u64;
        let mut grown = Lookup::default();
        let mut ids = Vec::new();
        for _ in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ids.push((random >> 62) as u32);
            if random >> 40 & 1 == 0 {
                assert_eq!(grown.draft(&ids, 6), Lookup::default().draft(&ids, 6));
            }
        }
    }
}
