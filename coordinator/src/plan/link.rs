//! The links between the workers and to the coordinator, and what a row costs on them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::speed::PS_PER_S;

/// One end of a link: a worker by its index, or the coordinator.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum End {
    /// Where ids come from and sampled tokens go to.
    Coordinator,
    /// An index into `PlanInput::workers`.
    Worker(usize),
}

/// A link's latency and rate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Link {
    /// There and back.
    pub rtt_ms: f64,
    /// Its rate; `None` where it does not count.
    pub bytes_per_s: Option<f64>,
}

/// All links of a mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Links {
    /// Each worker's own link, by which it reaches the coordinator and, where nothing else is known, the others.
    own: BTreeMap<usize, Link>,
    /// What is known of pairs, in this direction; `None` where one cannot reach the other.
    pairs: BTreeMap<(End, End), Option<Link>>,
}

impl Link {
    /// One on which nothing takes time.
    pub const FREE: Self = Self { rtt_ms: 0.0, bytes_per_s: None };

    /// Picoseconds for so many bytes to get to the other end.
    pub fn ps(&self, bytes: f64) -> f64 {
        let sending = self.bytes_per_s.map_or(0.0, |rate| bytes / rate);
        (self.rtt_ms / 2e3 + sending) * PS_PER_S
    }

    /// A way over both: the longer latency, as two links of one switch are each measured through it, and the lower rate.
    fn and(self, other: Self) -> Self {
        let rates = [self.bytes_per_s, other.bytes_per_s].into_iter().flatten();
        Self { rtt_ms: self.rtt_ms.max(other.rtt_ms), bytes_per_s: rates.reduce(f64::min) }
    }
}

impl Links {
    /// Sets a worker's own link.
    pub fn set_own(&mut self, worker: usize, link: Link) {
        self.own.insert(worker, link);
    }

    /// A worker's own link, where it is known.
    pub fn own(&self, worker: usize) -> Option<Link> {
        self.own.get(&worker).copied()
    }

    /// Sets the link between two ends, both ways.
    pub fn set_pair(&mut self, one: End, other: End, link: Link) {
        self.pairs.insert((one, other), Some(link));
        self.pairs.insert((other, one), Some(link));
    }

    /// Sets the link from one end to the other.
    pub fn set(&mut self, from: End, to: End, link: Link) {
        self.pairs.insert((from, to), Some(link));
    }

    /// One of them cannot reach the other.
    pub fn cut(&mut self, from: End, to: End) {
        self.pairs.insert((from, to), None);
    }

    /// The link from one end to the other, if there is one.
    pub fn between(&self, from: End, to: End) -> Option<Link> {
        let own = |end: End| match end {
            End::Coordinator => Link::FREE,
            End::Worker(worker) => self.own.get(&worker).copied().unwrap_or(Link::FREE),
        };
        self.pairs.get(&(from, to)).copied().unwrap_or_else(|| Some(own(from).and(own(to))))
    }

    /// The links of the workers `chosen`, numbered anew in that order.
    pub fn of(&self, chosen: &[usize]) -> Self {
        let place = |end: &End| match *end {
            End::Coordinator => Some(End::Coordinator),
            End::Worker(worker) => chosen.iter().position(|&c| c == worker).map(End::Worker),
        };
        let own = chosen.iter().enumerate().filter_map(|(new, old)| Some((new, *self.own.get(old)?)));
        let pairs = self.pairs.iter().filter_map(|((from, to), link)| Some(((place(from)?, place(to)?), *link)));
        Self { own: own.collect(), pairs: pairs.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_is_known_counts_before_what_each_has() {
        let link = |rtt_ms, bytes_per_s| Link { rtt_ms, bytes_per_s };
        let mut links = Links::default();
        links.set_own(0, link(2.0, Some(1e6)));
        links.set_own(1, link(10.0, Some(5e6)));
        let [a, b, c] = [0, 1, 2].map(End::Worker);
        assert_eq!(links.between(a, b), Some(link(10.0, Some(1e6))));
        assert_eq!(links.between(End::Coordinator, b), Some(link(10.0, Some(5e6))));
        assert_eq!(links.between(c, End::Coordinator), Some(Link::FREE));
        links.set_pair(a, b, link(1.0, None));
        links.cut(b, a);
        assert_eq!((links.between(a, b), links.between(b, a)), (Some(link(1.0, None)), None));
        let swapped = links.of(&[1, 0]);
        assert_eq!((swapped.between(b, a), swapped.between(a, b)), (Some(link(1.0, None)), None));
        assert!((link(10.0, Some(1e6)).ps(1e3) - 6e9).abs() < 1.0);
    }
}
