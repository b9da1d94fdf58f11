//! Where a shard's tensors came from, in bytes, by who sent them.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use qmesh_models::bytes::ByteCount;
use qmesh_net::{WeightOrigin, WeightPeer};

/// Who sent bytes of tensors.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Sender {
    /// A worker, by its place among those that the plan names.
    Peer(usize),
    /// The coordinator.
    Coordinator,
}

/// Bytes that came over the network, by who sent them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Origins {
    pub(crate) coordinator: u64,
    /// Workers that sent something, by name.
    pub(crate) peers: Vec<(String, u64)>,
}

/// What a fetch has counted so far.
#[derive(Debug)]
pub(super) struct Received {
    /// Bytes of the missing tensors that are at hand, some perhaps from an earlier try.
    here: AtomicU64,
    coordinator: AtomicU64,
    peers: Vec<(String, AtomicU64)>,
}

impl Origins {
    /// Nothing but what the coordinator sent.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn coordinator(bytes: u64) -> Self {
        Self { coordinator: bytes, peers: Vec::new() }
    }

    /// Bytes from anybody.
    pub(crate) fn bytes(&self) -> u64 {
        self.coordinator + self.peer_bytes()
    }

    /// Takes in what another fetch has counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.coordinator += other.coordinator;
        for (name, bytes) in &other.peers {
            match self.peers.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += bytes,
                None => self.peers.push((name.clone(), *bytes)),
            }
        }
    }

    /// As the coordinator is told.
    pub(crate) fn to_wire(&self) -> WeightOrigin {
        WeightOrigin { coordinator_bytes: self.coordinator, peer_bytes: self.peer_bytes() }
    }

    fn peer_bytes(&self) -> u64 {
        self.peers.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl fmt::Display for Origins {
    /// `80 MB from attic, 40 MB from the coordinator`; who sent nothing is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coordinator = ("the coordinator", self.coordinator);
        let all = self.peers.iter().map(|(name, bytes)| (name.as_str(), *bytes)).chain([coordinator]);
        for (i, (name, bytes)) in all.filter(|(_, bytes)| *bytes > 0).enumerate() {
            write!(f, "{}{} from {name}", if i == 0 { "" } else { ", " }, ByteCount(bytes))?;
        }
        Ok(())
    }
}

impl Received {
    /// Nothing yet, from any of these.
    pub(super) fn new(peers: &[WeightPeer]) -> Self {
        let peers = peers.iter().map(|peer| (peer.name.clone(), AtomicU64::new(0))).collect();
        Self { here: AtomicU64::new(0), coordinator: AtomicU64::new(0), peers }
    }

    /// Another try begins: what is at hand is counted anew.
    pub(super) fn begin(&self) {
        self.here.store(0, Ordering::Relaxed);
    }

    /// So many bytes are at hand from an earlier try.
    pub(super) fn taken_up(&self, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes came.
    pub(super) fn came(&self, from: Sender, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
        match from {
            Sender::Coordinator => self.coordinator.fetch_add(bytes, Ordering::Relaxed),
            Sender::Peer(peer) => self.peers[peer].1.fetch_add(bytes, Ordering::Relaxed),
        };
    }

    /// So many bytes turned out wrong and are gone.
    pub(super) fn thrown_away(&self, bytes: u64) {
        self.here.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes at hand.
    pub(super) fn here(&self) -> u64 {
        self.here.load(Ordering::Relaxed)
    }

    /// What came from whom.
    pub(super) fn origins(&self) -> Origins {
        let peers = self.peers.iter().map(|(name, bytes)| (name.clone(), bytes.load(Ordering::Relaxed)));
        let peers = peers.filter(|(_, bytes)| *bytes > 0).collect();
        Origins { coordinator: self.coordinator.load(Ordering::Relaxed), peers }
    }
}

#[cfg(test)]
mod tests {
    use qmesh_net::PeerId;

    use super::*;

    #[test]
    fn they_say_who_sent_how_much() {
        let peer = |name: &str| WeightPeer { peer: PeerId([1; 32]), name: name.into(), addresses: Vec::new() };
        let received = Received::new(&[peer("attic"), peer("cellar")]);
        received.came(Sender::Peer(0), 80_000_000);
        received.came(Sender::Coordinator, 40_000_000);
        received.thrown_away(40_000_000);
        let mut origins = received.origins();
        assert_eq!(origins.to_string(), "80.0 MB from attic, 40.0 MB from the coordinator");
        assert_eq!((received.here(), origins.bytes()), (80_000_000, 120_000_000));
        origins.add(&origins.clone());
        origins.add(&Origins::coordinator(1));
        assert_eq!(origins.to_wire(), WeightOrigin { coordinator_bytes: 80_000_001, peer_bytes: 160_000_000 });
        assert_eq!(Origins::default().to_string(), "");
    }
}
