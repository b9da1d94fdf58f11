//! How a prompt that has the pipeline to itself is cut into chunks: what the scheduler does, and what predictions count on.

/// Rows of the next chunk, at least 1 and at most `most`, where P = `left` rows of prompts are left together. A step of C rows
/// takes a stage a + C·b, so that over S stages the last row is out soonest with C = √(P·a / ((S − 1)·b)).
pub(crate) fn rows(stages: usize, left: usize, most: usize) -> usize {
    let most = most.max(1);
    if stages <= 1 {
        return most;
    }
    let best = (left as f64 * COST_ROWS / (stages - 1) as f64).sqrt() as usize;
    best.max(1).next_multiple_of(LEAST).min(most)
}

/// What a step costs a stage however few rows it has, in rows: a / b.
const COST_ROWS: f64 = 5.0;
/// The shortest chunk.
const LEAST: usize = 32;

#[cfg(test)]
mod tests {
    use super::rows;

    #[test]
    fn chunks_are_short_where_they_follow_each_other() {
        assert_eq!(rows(1, 512, 256), 256);
        assert_eq!(rows(2, 512, 256), 64);
        assert_eq!(rows(2, 44, 256), 32);
        assert_eq!(rows(5, 512, 256), 32);
        assert_eq!(rows(2, 100_000, 256), 256);
        assert_eq!((rows(3, 0, 0), rows(3, 0, 8)), (1, 8));
    }
}
