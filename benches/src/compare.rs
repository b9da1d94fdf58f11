//! Ours and llama.cpp's, measured in turn so that a disturbance of the machine meets both.

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    machine::peak_memory_mib,
    peer::{Peer, Setting},
    report::{Cell, Report, ReportTable},
    statistics::{Samples, geometric_mean},
};

/// What was measured of one thing: seconds, ours and each peer's.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Ours.
    pub ours: Samples,
    /// Of each peer, in the order of `--llama-bin`; empty where the peers were not asked.
    pub peers: Vec<PeerSamples>,
}

/// What was measured of one peer: seconds under each of its settings. The fastest setting by its median is the one that
/// counts, in the table and in the ratio.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerSamples {
    first: (Setting, Samples),
    others: Vec<(Setting, Samples)>,
}

impl Comparison {
    /// Our speed as a multiple of the best peer's.
    pub fn ratio(&self) -> Option<f64> {
        let best = self.peers.iter().map(PeerSamples::median).min_by(f64::total_cmp)?;
        Some(best / self.ours.median())
    }

    /// All samples in seconds, `{"ours": [..], "peers": {label: {"-fa 0 -ub 512": [..], ..}}}`.
    pub fn json(&self, peers: &[Peer]) -> Value {
        let beside = peers.iter().zip(&self.peers).map(|(peer, samples)| (peer.label.clone(), samples.json()));
        json!({ "ours": self.ours.all(), "peers": beside.collect::<Map<_, _>>() })
    }

    /// How many `units` a second each of `count` peers does, empty cells where they were not asked.
    pub fn peer_rates(&self, units: f64, count: usize) -> Vec<Cell> {
        (0..count).map(|i| self.peers.get(i).map_or(Cell::Empty, |p| Cell::number(units / p.median(), 2))).collect()
    }

    /// The `-fa` that each of `count` peers was the fastest with, empty cells where they were not asked.
    pub fn peer_attentions(&self, count: usize) -> Vec<Cell> {
        let value = |peer: &PeerSamples| peer.fastest().0.attention.value().into();
        (0..count).map(|i| self.peers.get(i).map_or(Cell::Empty, value)).collect()
    }
}

impl PeerSamples {
    /// Parts what was sampled of each peer with each of `settings`, peer after peer, by peer.
    ///
    /// # Panics
    /// Where there is no setting.
    pub fn by_peer(samples: impl IntoIterator<Item = Samples>, settings: &[Setting]) -> Vec<Self> {
        assert!(!settings.is_empty(), "a peer is run with at least one setting");
        let mut samples = samples.into_iter();
        let mut peers = Vec::new();
        while let Some(first) = samples.next() {
            let others = settings[1..].iter().copied().zip(samples.by_ref().take(settings.len() - 1));
            peers.push(Self { first: (settings[0], first), others: others.collect() });
        }
        peers
    }

    /// The setting with the lowest median, the earlier one of two that are equal, and its samples.
    pub fn fastest(&self) -> (Setting, &Samples) {
        let mut fastest = &self.first;
        for other in &self.others {
            if other.1.median() < fastest.1.median() {
                fastest = other;
            }
        }
        (fastest.0, &fastest.1)
    }

    /// The median of the fastest setting, in seconds.
    pub fn median(&self) -> f64 {
        self.fastest().1.median()
    }

    fn json(&self) -> Value {
        let all = [&self.first].into_iter().chain(&self.others);
        let named = all.map(|(setting, samples)| (setting.arguments().join(" "), json!(samples.all())));
        Value::Object(named.collect())
    }
}

/// The peer's index and the setting of the contender `at`, where every peer is run with each of `settings`, peer after peer.
pub fn peer_and_setting(at: usize, settings: &[Setting]) -> (usize, Setting) {
    (at / settings.len(), settings[at % settings.len()])
}

/// Headings of columns with one figure a peer, as `Comparison::peer_rates` and `Comparison::peer_attentions` fill them.
pub fn peer_headings(peers: &[Peer], unit: &str) -> Vec<String> {
    peers.iter().map(|peer| format!("{} {unit}", peer.label)).collect()
}

/// The report of `times` in `table`, with this process's peak memory after the other notes.
pub fn report<'a>(
    table: ReportTable,
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

    fn samples(seconds: f64) -> Samples {
        Samples::from_iter([seconds])
    }

    #[test]
    fn the_better_peer_counts() {
        let peers = PeerSamples::by_peer([samples(5.0), samples(4.0)], &Setting::BOTH_ATTENTIONS[..1]);
        let comparison = Comparison { ours: samples(2.0), peers };
        assert_eq!(comparison.ratio(), Some(2.0));
        assert_eq!(comparison.peer_rates(8.0, 2), [Cell::number(1.6, 2), Cell::number(2.0, 2)]);
        assert_eq!(Comparison { peers: vec![], ..comparison }.ratio(), None);
    }

    #[test]
    fn the_better_attention_counts_in_each_cell() {
        // Seconds a token of a build that is the faster one without flash attention, and of one that is so with it.
        let times = [[0.010, 0.011, 0.009], [0.024, 0.023, 0.025], [0.030, 0.031, 0.029], [0.015, 0.090, 0.016]];
        let settings = Setting::BOTH_ATTENTIONS;
        let peers = PeerSamples::by_peer(times.map(Samples::from_iter), &settings);
        assert_eq!(peers.iter().map(PeerSamples::median).collect::<Vec<_>>(), [0.010, 0.016]);
        assert_eq!((peers[0].fastest().0, peers[1].fastest().0), (settings[0], settings[1]));
        let comparison = Comparison { ours: samples(0.005), peers };
        assert_eq!(comparison.ratio(), Some(2.0));
        assert_eq!(comparison.peer_attentions(3), ["0".into(), "1".into(), Cell::Empty]);
        let builds = [("a", "llama-bench"), ("b", "llama-bench")];
        let builds = builds.map(|(label, program)| Peer { label: label.into(), program: program.into(), build: None });
        let json = comparison.json(&builds);
        assert_eq!(json["peers"]["b"]["-fa 0 -ub 512"], json!([0.030, 0.031, 0.029]), "no sample is thrown away");
    }

    #[test]
    fn means_are_per_key() {
        assert_eq!(means([(1, Some(2.0)), (2, Some(3.0)), (1, Some(2.0)), (2, None)]), [(1, 2.0)]);
    }
}
