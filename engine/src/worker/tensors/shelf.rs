//! The tensors that this worker can give to others, and who may have them: peers that the coordinator has named, and
//! tensors that it has named too.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use blake3::Hash;
use qmesh_net::{Pacer, PeerId, PeerWay};
use tokio::{sync::watch, time::timeout};

use super::store::Place;
use crate::worker::assignment::Assignment;

/// Who may ask, and what is still on its way here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// The workers that plans of this worker's stages name.
    pub(crate) askers: BTreeSet<PeerId>,
    /// Where these are, as far as it is known.
    pub(crate) ways: Vec<PeerWay>,
    /// The shards whose tensors are not all at hand.
    pub(crate) coming: Vec<Arc<Assignment>>,
}

/// What a worker has to give. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    contents: Arc<Mutex<Contents>>,
    pacer: Arc<Mutex<Pacer>>,
    /// Counts the changes of the contents, for those who wait for one.
    changes: watch::Sender<u64>,
}

/// What is known of a tensor that somebody asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// It lies here, and has so many bytes.
    Here { place: Place, bytes: u64 },
    /// It is on its way.
    Coming,
    /// It is not here.
    Nothing,
    /// Who asks was not named.
    Stranger,
}

#[derive(Debug, Default)]
struct Contents {
    offer: Offer,
    /// Where tensors lie that were fetched or found for a plan, with their lengths in bytes.
    places: HashMap<Hash, (Place, u64)>,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { contents: Arc::default(), pacer: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl Shelf {
    /// From now on exactly these peers may ask, and exactly these tensors are on their way.
    pub(crate) fn offer(&self, offer: Offer) {
        self.contents().offer = offer;
        self.changed();
    }

    /// A step runs here: what is served makes way for it.
    pub(crate) fn stepped(&self, now: Instant) {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner).stepped(now);
    }

    /// A tensor is at hand.
    pub(super) fn put(&self, place: Place, bytes: u64) {
        self.contents().places.insert(place.hash, (place, bytes));
        self.changed();
    }

    /// How long so many bytes are to wait before they leave for there.
    pub(super) fn delay(&self, to: SocketAddr, now: Instant, bytes: u64) -> Duration {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner).delay(to, now, bytes)
    }

    /// What this peer may know of a tensor.
    pub(super) fn look(&self, peer: PeerId, hash: Hash) -> Found {
        let contents = self.contents();
        if !contents.offer.askers.contains(&peer) {
            return Found::Stranger;
        }
        match contents.places.get(&hash) {
            Some((place, bytes)) => Found::Here { place: place.clone(), bytes: *bytes },
            None if contents.offer.coming.iter().any(|shard| shard.hashes.contains(&hash)) => Found::Coming,
            None => Found::Nothing,
        }
    }

    /// The same, once a tensor that is on its way has come, or has not for so long.
    pub(super) async fn wait(&self, peer: PeerId, hash: Hash, patience: Duration) -> Found {
        let mut changes = self.changes.subscribe();
        let arrived = async {
            loop {
                let found = self.look(peer, hash);
                // The sender lives as long as this shelf.
                if found != Found::Coming || changes.changed().await.is_err() {
                    return found;
                }
            }
        };
        timeout(patience, arrived).await.unwrap_or(Found::Coming)
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::store::Owner, *};
    use crate::worker::tests::load_shard;

    const FRIEND: PeerId = PeerId([1; 32]);

    fn place(hash: Hash) -> Place {
        Place { path: "x".into(), offset: 3, hash, owner: Owner::User }
    }

    #[tokio::test]
    async fn only_who_is_named_hears_of_what_is_here() {
        let shelf = Shelf::default();
        let coming = Arc::new(Assignment::try_from(load_shard(1, 0..1)).unwrap());
        let (wanted, other) = (coming.hashes[0], blake3::hash(b"of no plan"));
        shelf.put(place(other), 7);
        assert_eq!(shelf.look(FRIEND, other), Found::Stranger);
        shelf.offer(Offer { askers: [FRIEND].into(), ways: Vec::new(), coming: vec![Arc::clone(&coming)] });
        assert_eq!(shelf.look(PeerId([2; 32]), other), Found::Stranger);
        assert_eq!(shelf.look(FRIEND, other), Found::Here { place: place(other), bytes: 7 });
        assert_eq!(shelf.look(FRIEND, blake3::hash(b"never heard of")), Found::Nothing);

        assert_eq!(shelf.wait(FRIEND, wanted, Duration::from_millis(1)).await, Found::Coming);
        let waiting = tokio::spawn({
            let shelf = shelf.clone();
            async move { shelf.wait(FRIEND, wanted, Duration::from_secs(20)).await }
        });
        tokio::task::yield_now().await;
        shelf.put(place(wanted), 9);
        assert_eq!(waiting.await.unwrap(), Found::Here { place: place(wanted), bytes: 9 });
        shelf.offer(Offer::default());
        assert_eq!(shelf.look(FRIEND, wanted), Found::Stranger);
    }

    #[tokio::test]
    async fn who_waits_for_what_will_not_come_hears_it_at_once() {
        let shelf = Shelf::default();
        let coming = Arc::new(Assignment::try_from(load_shard(1, 0..1)).unwrap());
        let wanted = coming.hashes[0];
        shelf.offer(Offer { askers: [FRIEND].into(), ways: Vec::new(), coming: vec![coming] });
        let waiting = tokio::spawn({
            let shelf = shelf.clone();
            async move { shelf.wait(FRIEND, wanted, Duration::from_secs(20)).await }
        });
        tokio::task::yield_now().await;
        // The fetch has failed: the peer stays welcome.
        shelf.offer(Offer { askers: [FRIEND].into(), ways: Vec::new(), coming: Vec::new() });
        assert_eq!(waiting.await.unwrap(), Found::Nothing);
    }
}
