//! Rows of a prompt on their way to one vector. The last stage adds them up as integers, so that it does not matter how the
//! prompt is cut into steps.

use qmesh_net::{RowSum, Wants};

use crate::generate::Pooling;

/// The sum of the rows that have come back so far.
#[derive(Debug)]
pub(super) struct Pool {
    pooling: Pooling,
    sum: Vec<i128>,
}

impl Pool {
    pub(super) fn new(pooling: Pooling) -> Self {
        Self { pooling, sum: Vec::new() }
    }

    /// The ids of a prompt whose rows are computed at all: no row knows of those behind it.
    pub(super) fn ids(&self, prompt: &[u32]) -> Vec<u32> {
        match self.pooling {
            Pooling::First => prompt.iter().take(1).copied().collect(),
            Pooling::Mean | Pooling::Last => prompt.to_vec(),
        }
    }

    /// What is wanted of a segment's rows; whether it ends the prompt is in `last`.
    pub(super) fn wants(&self, last: bool) -> Wants {
        match (self.pooling, last) {
            (Pooling::Mean, _) => Wants::Sum,
            (Pooling::First | Pooling::Last, true) => Wants::SumLast,
            (Pooling::First | Pooling::Last, false) => Wants::None,
        }
    }

    /// Whether the rows that others have left on the stages need not be computed again.
    pub(super) fn can_share(&self) -> bool {
        self.pooling == Pooling::Last
    }

    /// The prompt is computed from its beginning again.
    pub(super) fn clear(&mut self) {
        self.sum.clear();
    }

    pub(super) fn add(&mut self, RowSum(sum): &RowSum) {
        self.sum.resize(self.sum.len().max(sum.len()), 0);
        self.sum.iter_mut().zip(sum).for_each(|(total, value)| *total += i128::from(*value));
    }

    /// The sum as a vector of length 1, which is the mean's, too; zeros where the sum is zero.
    pub(super) fn vector(&self) -> Vec<f32> {
        let sum: Vec<f64> = self.sum.iter().map(|value| *value as f64).collect();
        let length = sum.iter().fold(0.0, |squares, value| squares + value * value).sqrt();
        let factor = if length > 0.0 { length.recip() } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "at most 1, only precision is lost")]
        sum.iter().map(|value| (value * factor) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_parts_are_the_sum_of_all() {
        let rows = [[i64::MAX, 3, 0], [i64::MAX, -7, 0], [2, 4_000_000_000, 0]].map(|row| RowSum(row.to_vec()));
        let mut forth = Pool::new(Pooling::Mean);
        rows.iter().for_each(|row| forth.add(row));
        let mut back = Pool::new(Pooling::Mean);
        back.add(&RowSum(vec![5, 5, 5]));
        back.clear();
        rows.iter().rev().for_each(|row| back.add(row));
        assert_eq!((&forth.sum, forth.vector()), (&back.sum, back.vector()));
        assert_eq!(forth.sum, [2 * i128::from(i64::MAX) + 2, 3_999_999_996, 0]);
    }

    #[test]
    fn a_vector_has_length_one_or_none() {
        let mut pool = Pool::new(Pooling::Last);
        pool.add(&RowSum(vec![3 << 32, -(4 << 32), 0]));
        assert_eq!(pool.vector(), [0.6, -0.8, 0.0]);
        let mut pool = Pool::new(Pooling::Last);
        pool.add(&RowSum(vec![0; 2]));
        assert_eq!(pool.vector(), [0.0, 0.0]);
    }
}
