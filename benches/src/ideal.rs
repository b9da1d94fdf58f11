//! What a pipeline could do at best, from the times of its stages and links.

use qmesh_coordinator::plan::curve;

/// Time of a step of the whole model, by its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTable(Vec<(f64, f64)>);

/// What bounds a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineBounds {
    /// Of the whole model.
    pub steps: StepTable,
    /// Each stage's share of a step, together 1.
    pub shares: Vec<f64>,
    /// What a step spends on links and at the coordinator, together, in seconds.
    pub hops_s: f64,
    /// What one row takes to get through a link between two stages, in seconds; 0 where links have no limit.
    pub row_wire_s: f64,
}

/// The most that a pipeline can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// Of all clients together.
    pub tokens_per_s: f64,
    /// Into how many groups the clients are dealt for it.
    pub groups: usize,
}

impl StepTable {
    /// A table of (rows, seconds).
    pub fn new(points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        let mut points: Vec<(f64, f64)> = points.into_iter().map(|(rows, seconds)| (rows as f64, seconds)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self(points)
    }

    /// Seconds of a step of `rows` rows: as measured, between its neighbours, or in proportion beyond the last; NaN of an
    /// empty table.
    pub fn seconds(&self, rows: f64) -> f64 {
        curve::at(self.0.iter().copied(), rows).unwrap_or(f64::NAN)
    }
}

impl PipelineBounds {
    /// Tokens a second of `clients` in `groups` of equal size: as many as the slowest stage or link lets through, and no
    /// more than what is under way in the time of one round.
    pub fn rate(&self, clients: usize, groups: usize) -> f64 {
        let rows = clients as f64 / groups as f64;
        let step = self.steps.seconds(rows);
        let wire = rows * self.row_wire_s;
        let slowest = (self.largest_share() * step).max(wire);
        let sum: f64 = self.shares.iter().sum();
        let round = sum * step + self.hops_s + wire * self.shares.len().saturating_sub(1) as f64;
        (rows / slowest).min(clients as f64 / round)
    }

    /// The most that `clients` can get, over all numbers of groups; of one client, one token after the other.
    pub fn best(&self, clients: usize) -> Best {
        let all = (1..=clients.max(1)).map(|groups| Best { tokens_per_s: self.rate(clients, groups), groups });
        // Of equal ones the fewest groups.
        all.reduce(|best, next| if next.tokens_per_s > best.tokens_per_s * (1.0 + 1e-9) { next } else { best })
            .unwrap_or(Best { tokens_per_s: f64::NAN, groups: 1 })
    }

    /// The slowest stage's share of a step.
    pub fn largest_share(&self) -> f64 {
        self.shares.iter().copied().fold(0.0, f64::max)
    }
}

/// Time of links that each take half of `rtt_s` one way: coordinator to first stage, stage to stage, last stage to
/// coordinator.
pub fn hops_s(stages: usize, rtt_s: f64) -> f64 {
    (stages + 1) as f64 * rtt_s / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal stages of 10 ms whatever the rows, in a ring of as many links.
    fn ring(stages: usize, rtt_ms: f64) -> PipelineBounds {
        PipelineBounds {
            steps: StepTable::new([(1, 0.01 * stages as f64), (64, 0.01 * stages as f64)]),
            shares: vec![1.0 / stages as f64; stages],
            hops_s: stages as f64 * rtt_ms / 2e3,
            row_wire_s: 0.0,
        }
    }

    #[test]
    fn groups_fill_a_pipeline_as_simulated() {
        // Fractions of the 100 tokens a second of a stage that never waits.
        let cases =
            [(2, 1.0, 1, 0.48), (2, 1.0, 2, 0.95), (2, 100.0, 1, 0.08), (2, 100.0, 2, 0.17), (2, 100.0, 12, 1.0)];
        let more = [(4, 1.0, 1, 0.24), (4, 1.0, 4, 0.95), (4, 20.0, 4, 0.5), (4, 20.0, 8, 1.0), (4, 100.0, 4, 0.17)];
        for (stages, rtt_ms, groups, fraction) in cases.into_iter().chain(more) {
            let rate = ring(stages, rtt_ms).rate(groups, groups);
            assert!((rate / 100.0 - fraction).abs() < 0.006, "{stages} stages, {rtt_ms} ms, {groups} groups: {rate}");
        }
        assert!((ring(4, 100.0).rate(24, 24) - 100.0).abs() < 1e-9);
        assert!(ring(4, 100.0).rate(23, 23) < 96.0);
    }

    #[test]
    fn one_client_gets_the_sum_of_stages_and_links() {
        let best = ring(3, 50.0).best(1);
        assert!((best.tokens_per_s - 1.0 / (0.03 + 0.075)).abs() < 1e-9);
        assert!(best.groups == 1 && (hops_s(2, 0.1) - 0.15).abs() < 1e-9);
    }

    #[test]
    fn rows_that_cost_are_dealt_to_groups() {
        // A step takes 20 ms and 2 ms more a row: all at once leaves one of two stages idle at any time.
        let steps = StepTable::new([(1, 0.022), (8, 0.036)]);
        let two = PipelineBounds { steps: steps.clone(), shares: vec![0.5, 0.5], hops_s: 0.0, row_wire_s: 0.0 };
        let best = two.best(8);
        assert_eq!(best.groups, 2);
        assert!((best.tokens_per_s - 4.0 / 0.014).abs() < 1e-9);
        let one = PipelineBounds { shares: vec![1.0], ..two.clone() };
        assert_eq!(one.best(8), Best { tokens_per_s: 8.0 / 0.036, groups: 1 });
        // A link that takes 10 ms a row is the slowest stage.
        let narrow = PipelineBounds { row_wire_s: 0.01, ..two };
        assert!((narrow.best(8).tokens_per_s - 100.0).abs() < 1e-9);
    }

    #[test]
    fn tables_are_read_between_and_beyond() {
        let table = StepTable::new([(8, 0.05), (1, 0.01), (4, 0.02)]);
        let read = [0.5, 1.0, 2.5, 6.0, 8.0, 16.0].map(|rows| (table.seconds(rows) * 1e4).round());
        assert_eq!(read, [100.0, 100.0, 150.0, 350.0, 500.0, 1000.0]);
        assert!(StepTable::new([]).seconds(1.0).is_nan());
    }
}
