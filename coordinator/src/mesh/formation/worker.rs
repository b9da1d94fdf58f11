//! A connected worker: what it said when it joined, and which shards it holds.

use std::{fmt, net::SocketAddr, num::NonZeroUsize, ops::Range, time::Instant};

use qmesh_net::{MachineShare, Nat, PeerId, PlanEpoch, WayFound};

/// A worker's connection, counted from 1: a worker that comes back is another one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct WorkerId(pub(crate) u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker said when it joined.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) name: String,
    pub(crate) peer: PeerId,
    /// Where its packets come from.
    pub(crate) address: SocketAddr,
    /// Where it is by its own account.
    pub(crate) own: Vec<SocketAddr>,
    /// What NAT is before it, where that is known.
    pub(crate) nat: Option<Nat>,
    /// How it has found the coordinator, where it says so.
    pub(crate) found: Option<WayFound>,
    /// Whether it is one of those that bring others together with this coordinator.
    pub(crate) is_rendezvous: bool,
    pub(crate) memory_bytes: u64,
    pub(crate) threads: u32,
    /// Of its link to the coordinator, the shortest one so far.
    pub(crate) rtt_ms: f64,
    /// What it shares with other workers of its machine, where it says so.
    pub(crate) share: Option<MachineShare>,
}

impl Joined {
    /// One that says so little of itself.
    pub(crate) fn new(name: String, peer: PeerId, address: SocketAddr, memory_bytes: u64, threads: u32) -> Self {
        Self {
            name,
            peer,
            address,
            own: Vec::new(),
            nat: None,
            found: None,
            is_rendezvous: false,
            memory_bytes,
            threads,
            rtt_ms: 0.0,
            share: None,
        }
    }
}

/// A worker, as the roster knows it.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) joined: Joined,
    pub(super) since: Instant,
    /// Shards that it has, or is loading.
    pub(super) holds: Vec<Held>,
    /// Layers whose tensors it has got and, as they stay in its cache, still has: those of every shard that became ready.
    pub(super) stocks: Vec<Range<usize>>,
}

impl Worker {
    /// It has the tensors of these layers now.
    pub(super) fn stock(&mut self, layers: Range<usize>) {
        if !self.stocks.contains(&layers) {
            self.stocks.push(layers);
        }
    }
}

/// A shard on a worker.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) epoch: PlanEpoch,
    pub(super) layers: Range<usize>,
    pub(super) experts_in_memory: Option<NonZeroUsize>,
}
