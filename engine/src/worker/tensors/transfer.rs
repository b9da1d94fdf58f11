//! One missing tensor on its way into the cache: from workers that have it, one after the other, and from the coordinator
//! where none of them gives it. Who comes next goes on where the one before stopped. Whose bytes are wrong is named, and
//! asked no more.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use blake3::Hash;
use qmesh_net::{NetError, RangeRequest, WeightSource};
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{
    failure::FetchError,
    origins::{Received, Sender},
    shelf::Shelf,
    store::{PartialTensor, Store, Verdict},
    suppliers::{Itinerary, Suppliers},
};

/// Bytes asked for at once.
const RANGE_BYTES: u64 = 8 << 20;
/// How often the coordinator is asked for a tensor whose bytes turn out wrong.
const TRIES: usize = 2;
/// How long a peer may take for a tensor, beside the time that its bytes take.
const PEER_PATIENCE: Duration = Duration::from_secs(20);
/// A peer that gives less is slower than it is worth waiting for.
const PEER_BYTES_PER_SECOND: u64 = 2 << 20;
/// The wait after a peer has said that it has nothing yet: it has kept us waiting itself, if it is honest.
const NOT_YET_INTERVAL: Duration = Duration::from_millis(100);

/// A tensor that is to be fetched.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) name: String,
    pub(super) hash: Hash,
    pub(super) bytes: u64,
    /// Who can be asked before the coordinator.
    pub(super) sources: Vec<WeightSource>,
}

/// What all transfers of a fetch share.
#[derive(Clone, Debug)]
pub(super) struct Transfers {
    pub(super) store: Store,
    pub(super) suppliers: Arc<Suppliers>,
    pub(super) received: Arc<Received>,
    pub(super) shelf: Shelf,
    /// Lines for the person at the worker, and for the coordinator.
    pub(super) notes: mpsc::Sender<String>,
}

/// How far one supplier brought a tensor.
enum Stopped {
    /// All of it is there.
    Whole,
    /// It is given up for this tensor only.
    Passed(String),
    /// It is lost.
    Lost(NetError),
}

impl Transfers {
    /// Gets one tensor.
    ///
    /// # Errors
    /// The coordinator does not give it either, or it cannot be kept.
    pub(super) async fn fetch(self, tensor: Missing) -> Result<(), FetchError> {
        let (hash, bytes) = (tensor.hash, tensor.bytes);
        let mut itinerary = Itinerary::new(&tensor.sources);
        let mut tries = 0;
        while tries < TRIES {
            let store = self.store.clone();
            let part = spawn_blocking(move || store.resume(hash, bytes)).await??;
            self.received.taken_up(part.have());
            let (part, senders) = self.fill(&tensor, &mut itinerary, part).await?;
            if spawn_blocking(move || part.finish()).await?? == Verdict::Kept {
                if let Some(place) = self.store.find(hash, bytes) {
                    self.shelf.put(place, bytes);
                }
                return Ok(());
            }
            self.received.thrown_away(bytes);
            if !self.blame(&tensor, &senders) {
                tries += 1;
            }
        }
        Err(FetchError::Wrong { tensor: tensor.name })
    }

    /// Gets what is missing of a part, from one after the other; who sent some of it.
    async fn fill(
        &self,
        tensor: &Missing,
        itinerary: &mut Itinerary,
        mut part: PartialTensor,
    ) -> Result<(PartialTensor, BTreeSet<Sender>), FetchError> {
        let mut senders = BTreeSet::new();
        loop {
            let sender = itinerary.next(|peer| self.suppliers.is_asked(peer));
            let before = part.have();
            let stopped;
            (part, stopped) = self.pull(tensor, sender, part).await?;
            if part.have() > before {
                senders.insert(sender);
            }
            match (stopped, sender) {
                (Stopped::Whole, _) => return Ok((part, senders)),
                (Stopped::Lost(source), Sender::Coordinator) => {
                    return Err(FetchError::Net { tensor: tensor.name.clone(), source });
                }
                (Stopped::Passed(_), Sender::Coordinator) => {
                    return Err(FetchError::Short {
                        tensor: tensor.name.clone(),
                        had: part.have(),
                        bytes: tensor.bytes,
                    });
                }
                (Stopped::Passed(why), Sender::Peer(peer)) => {
                    itinerary.pass_over(peer);
                    tracing::info!(tensor = tensor.name, from = self.suppliers.name(sender), why, "asking the next");
                }
                (Stopped::Lost(error), Sender::Peer(peer)) => {
                    if self.suppliers.give_up(peer) {
                        let from = self.suppliers.name(sender);
                        self.note(format!("{from} gives no tensors any more ({error}): asking others"));
                    }
                }
            }
        }
    }

    /// Gets what one supplier gives of the missing rest.
    async fn pull(
        &self,
        tensor: &Missing,
        sender: Sender,
        mut part: PartialTensor,
    ) -> Result<(PartialTensor, Stopped), FetchError> {
        let bytes = tensor.bytes;
        let deadline = Instant::now() + PEER_PATIENCE + Duration::from_secs(bytes / PEER_BYTES_PER_SECOND);
        while part.have() < bytes {
            let offset = part.have();
            let request =
                RangeRequest { tensor: *tensor.hash.as_bytes(), offset, bytes: RANGE_BYTES.min(bytes - offset) };
            let mut range = match (self.suppliers.ask(sender, request).await, sender) {
                (Ok(range), _) => range,
                (Err(error @ NetError::RangeRefused { .. }), Sender::Peer(_)) => {
                    return Ok((part, Stopped::Passed(error.to_string())));
                }
                (Err(error), _) => return Ok((part, Stopped::Lost(error))),
            };
            let is_nothing = range.bytes_total() == 0;
            loop {
                let piece = match range.next().await {
                    Ok(Some(piece)) => piece,
                    Ok(None) => break,
                    Err(error) => return Ok((part, Stopped::Lost(error))),
                };
                self.received.came(sender, piece.len() as u64);
                part = spawn_blocking(move || part.append(&piece).map(|()| part)).await??;
            }
            match sender {
                Sender::Coordinator if is_nothing => {
                    return Ok((part, Stopped::Passed("it has no more bytes of it".into())));
                }
                Sender::Coordinator => {}
                Sender::Peer(_) if Instant::now() >= deadline && part.have() < bytes => {
                    return Ok((part, Stopped::Passed("it takes too long".into())));
                }
                Sender::Peer(_) if is_nothing => sleep(NOT_YET_INTERVAL).await,
                Sender::Peer(_) => {}
            }
        }
        Ok((part, Stopped::Whole))
    }

    /// Wrong bytes were thrown away: the peers that sent some of them are asked no more. Whether there are any: where the
    /// coordinator alone sent them, there is nobody else to ask.
    fn blame(&self, tensor: &Missing, senders: &BTreeSet<Sender>) -> bool {
        let mut named = Vec::new();
        for &sender in senders {
            if let Sender::Peer(peer) = sender {
                self.suppliers.give_up(peer);
                named.push(self.suppliers.name(sender));
            }
        }
        if named.is_empty() {
            tracing::warn!(tensor = tensor.name, "fetched bytes have the wrong hash");
            return false;
        }
        let (who, name) = (named.join(" and "), &tensor.name);
        self.note(format!("{who} sent wrong bytes of {name}: thrown away, and asked no more"));
        true
    }

    /// Says something. That nobody has room to hear it is no reason to wait.
    fn note(&self, text: String) {
        tracing::warn!("{text}");
        let _ = self.notes.try_send(text);
    }
}
