//! The workers that a fetch asks for tensors: one connection to each, and whom it asks no more.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use qmesh_net::{Connection, Endpoint, NetError, RangeReader, RangeRequest, Stock, WeightPeer, WeightSource};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use super::origins::Sender;

/// How long a peer may not let this worker in: what tells it to may still be on its way.
const ADMISSION_PATIENCE: Duration = Duration::from_secs(5);
/// The longest that a peer is dialled: the coordinator has the tensors too.
const DIAL_PATIENCE: Duration = Duration::from_secs(3);
/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The coordinator, and the workers that the plan names as sources.
#[derive(Debug)]
pub(super) struct Suppliers {
    coordinator: Connection,
    endpoint: Endpoint,
    peers: Vec<Supplier>,
    /// Until when it is no failure that a peer does not let us in.
    admitted_by: Instant,
}

#[derive(Debug)]
struct Supplier {
    peer: WeightPeer,
    /// Lost, or not to be trusted: it is asked no more.
    given_up: AtomicBool,
    connection: Mutex<Option<Connection>>,
}

impl Suppliers {
    /// Nobody has been asked yet.
    pub(super) fn new(coordinator: Connection, endpoint: Endpoint, peers: &[WeightPeer]) -> Self {
        let supplier = |peer: &WeightPeer| Supplier {
            peer: peer.clone(),
            given_up: AtomicBool::new(false),
            connection: Mutex::default(),
        };
        let peers = peers.iter().map(supplier).collect();
        Self { coordinator, endpoint, peers, admitted_by: Instant::now() + ADMISSION_PATIENCE }
    }

    /// What somebody is called, for people.
    pub(super) fn name(&self, sender: Sender) -> &str {
        match sender {
            Sender::Peer(peer) => &self.peers[peer].peer.name,
            Sender::Coordinator => "the coordinator",
        }
    }

    /// Asks a peer no more, whatever tensor it may have. Whether it was still asked until now.
    pub(super) fn give_up(&self, peer: usize) -> bool {
        !self.peers[peer].given_up.swap(true, Ordering::Relaxed)
    }

    /// Whether a peer is still asked.
    pub(super) fn is_asked(&self, peer: usize) -> bool {
        !self.peers[peer].given_up.load(Ordering::Relaxed)
    }

    /// Asks for a piece of a tensor.
    ///
    /// # Errors
    /// The peer refuses, cannot be reached, or does not answer as it should.
    pub(super) async fn ask(&self, sender: Sender, request: RangeRequest) -> Result<RangeReader, NetError> {
        let peer = match sender {
            Sender::Coordinator => return self.coordinator.fetch_range(request).await,
            Sender::Peer(peer) => peer,
        };
        loop {
            let error = match self.connection(peer).await {
                Ok(connection) => match connection.fetch_range(request).await {
                    Err(error) if !matches!(error, NetError::RangeRefused { .. }) => {
                        self.forget(peer).await;
                        error
                    }
                    answered => return answered,
                },
                Err(error) => error,
            };
            if Instant::now() >= self.admitted_by || !self.is_asked(peer) {
                return Err(error);
            }
            tracing::debug!(%error, "a source of tensors does not answer yet");
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn connection(&self, place: usize) -> Result<Connection, NetError> {
        let supplier = &self.peers[place];
        let mut connection = supplier.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let WeightPeer { peer, addresses, .. } = &supplier.peer;
        if !self.is_asked(place) {
            return Err(NetError::Unreachable { peer: *peer, text: "it was given up".into() });
        }
        let late = NetError::Deadline { peer: *peer, what: "reaching a source of tensors", after: DIAL_PATIENCE };
        let dialled = timeout(DIAL_PATIENCE, self.endpoint.dial(addresses, *peer)).await.unwrap_or(Err(late))?;
        Ok(connection.insert(dialled).clone())
    }

    async fn forget(&self, peer: usize) {
        *self.peers[peer].connection.lock().await = None;
    }
}

/// Whom to ask for one tensor, one after the other.
#[derive(Debug)]
pub(super) struct Itinerary {
    sources: Vec<WeightSource>,
}

impl Itinerary {
    /// Those who have the tensor first, then those who get it; in each the plan's order.
    pub(super) fn new(sources: &[WeightSource]) -> Self {
        let mut sources = sources.to_vec();
        sources.sort_by_key(|source| match source.stock {
            Stock::Held => 0,
            Stock::Coming => 1,
        });
        Self { sources }
    }

    /// Whom to ask now: the first peer that `is_asked` still, and the coordinator when there is none.
    pub(super) fn next(&self, is_asked: impl Fn(usize) -> bool) -> Sender {
        let peers = self.sources.iter().map(|source| usize::from(source.peer));
        peers.into_iter().find(|&peer| is_asked(peer)).map_or(Sender::Coordinator, Sender::Peer)
    }

    /// This peer is not asked for this tensor again.
    pub(super) fn pass_over(&mut self, peer: usize) {
        self.sources.retain(|source| usize::from(source.peer) != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(peer: u16, stock: Stock) -> WeightSource {
        WeightSource { peer, stock }
    }

    #[test]
    fn who_has_it_is_asked_before_who_gets_it_and_the_coordinator_last() {
        let mut itinerary = Itinerary::new(&[source(2, Stock::Coming), source(0, Stock::Held), source(1, Stock::Held)]);
        assert_eq!(itinerary.next(|_| true), Sender::Peer(0));
        assert_eq!(itinerary.next(|peer| peer != 0), Sender::Peer(1), "one that is lost is left out");
        assert_eq!(itinerary.next(|_| true), Sender::Peer(0), "it refused nothing");
        itinerary.pass_over(0);
        itinerary.pass_over(1);
        assert_eq!(itinerary.next(|_| true), Sender::Peer(2));
        assert_eq!(itinerary.next(|_| false), Sender::Coordinator);
        itinerary.pass_over(2);
        assert_eq!(itinerary.next(|_| true), Sender::Coordinator);
        assert_eq!(Itinerary::new(&[]).next(|_| true), Sender::Coordinator);
    }
}
