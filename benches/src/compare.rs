//! Ours and llama.cpp's, measured in turn so that a disturbance of the machine meets both.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    machine::peak_memory_mib,
    peer::Peer,
    report::{Cell, Report, Table},
    statistics::{Samples, geometric_mean},
};

/// What was measured of one thing: seconds, ours and each peer's.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Ours.
    pub ours: Samples,
    /// Of each peer, in the order of `--llama-bin`; empty where the peers were not asked.
    pub peers: Vec<Samples>,
}

impl Comparison {
    /// Our speed as a multiple of the best peer's.
    pub fn ratio(&self) -> Option<f64> {
        let best = self.peers.iter().map(Samples::median).min_by(f64::total_cmp)?;
        Some(best / self.ours.median())
    }

    /// All samples in seconds, `{"ours": [..], "peers": {label: [..]}}`.
    pub fn json(&self, peers: &[Peer]) -> Value {
        let beside = peers.iter().zip(&self.peers).map(|(peer, samples)| (peer.label.clone(), json!(samples.all())));
        json!({ "ours": self.ours.all(), "peers": beside.collect::<Map<_, _>>() })
    }

    /// How many `units` a second each of `count` peers does, empty cells where they were not asked.
    pub fn peer_rates(&self, units: f64, count: usize) -> Vec<Cell> {
        (0..count).map(|i| self.peers.get(i).map_or(Cell::Empty, |p| Cell::number(units / p.median(), 2))).collect()
    }
}

/// Headings of the columns that `Comparison::peer_rates` fills.
pub fn peer_headings(peers: &[Peer], unit: &str) -> Vec<String> {
    peers.iter().map(|peer| format!("{} {unit}", peer.label)).collect()
}

/// The report of `times` in `table`, with this process's peak memory after the other notes.
pub fn report<'a>(
    table: Table,
    times: impl IntoIterator<Item = &'a Comparison>,
    mut notes: Vec<String>,
    peers: Vec<Peer>,
) -> Report {
    notes.extend(peak_memory_mib().map(|mib| format!("peak memory of this process {mib:.0} MiB")));
    let samples = times.into_iter().map(|times| times.json(&peers)).collect();
    Report { tables: vec![table], notes, samples, peers, ..Report::default() }
}

/// Asks each of `lanes` contenders for one sample in seconds, in turn, `repeat` times.
///
/// # Errors
/// Whatever stops a contender stops the whole.
pub fn interleave(lanes: usize, repeat: usize, mut sample: impl FnMut(usize) -> Result<f64>) -> Result<Vec<Samples>> {
    let mut measured = vec![Samples::default(); lanes];
    for _ in 0..repeat {
        for (lane, samples) in measured.iter_mut().enumerate() {
            samples.push(sample(lane)?);
        }
    }
    Ok(measured)
}

/// For each different key, in order of appearance, the geometric mean over the models that were compared under it, where
/// there are several.
pub fn means<K: Copy + PartialEq>(ratios: impl IntoIterator<Item = (K, Option<f64>)>) -> Vec<(K, f64)> {
    let mut groups: Vec<(K, Vec<f64>)> = Vec::new();
    for (key, ratio) in ratios {
        let Some(ratio) = ratio else { continue };
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, group)) => group.push(ratio),
            None => groups.push((key, vec![ratio])),
        }
    }
    let several = groups.into_iter().filter(|(_, group)| group.len() > 1);
    several.filter_map(|(key, group)| Some((key, geometric_mean(&group)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_take_turns() {
        let mut order = vec![];
        let measured = interleave(3, 2, |lane| {
            order.push(lane);
            Ok(order.len() as f64)
        });
        assert_eq!(order, [0, 1, 2, 0, 1, 2]);
        assert_eq!(measured.unwrap()[1], Samples::from_iter([2.0, 5.0]));
    }

    #[test]
    fn the_better_peer_counts() {
        let samples = |seconds: f64| Samples::from_iter([seconds]);
        let comparison = Comparison { ours: samples(2.0), peers: vec![samples(5.0), samples(4.0)] };
        assert_eq!(comparison.ratio(), Some(2.0));
        assert_eq!(comparison.peer_rates(8.0, 2), [Cell::number(1.6, 2), Cell::number(2.0, 2)]);
        assert_eq!(Comparison { peers: vec![], ..comparison }.ratio(), None);
    }

    #[test]
    fn means_are_per_key() {
        assert_eq!(means([(1, Some(2.0)), (2, Some(3.0)), (1, Some(2.0)), (2, None)]), [(1, 2.0)]);
    }
}
