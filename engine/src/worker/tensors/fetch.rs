//! Getting a shard's tensors: from the cache, from the user's model files, or from other workers and the coordinator in
//! ranges, which are verified before they get a name. No byte of a tensor that the shard does not hold is asked for, or
//! kept.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use blake3::Hash;
use qmesh_models::{
    bytes::ByteCount,
    spec::{TensorRole, TensorSpec},
};
use qmesh_net::{Connection, Endpoint, Stock};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use super::{
    failure::FetchError,
    holding::needed_together,
    local::LocalModels,
    origins::{Origins, Received},
    places::TensorPlaces,
    room,
    shelf::Shelf,
    store::{Place, Store, delete},
    suppliers::Suppliers,
    transfer::{Missing, Transfers},
    uses::HeldUses,
};
use crate::{
    backend::HeldTensors,
    worker::{assignment::Assignment, memory::Allowance, turn::Turn},
};

/// Tensors fetched side by side.
const IN_FLIGHT: usize = 4;
/// Notes about sources that may wait to be told; more than these tell nothing new.
const NOTES: usize = 16;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
/// The waits before a full disk is tried again. Together they are short: the coordinator may have another worker.
const FULL_DISK_WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(5), Duration::from_secs(10)];

/// How closely tensors that are on this machine are looked at before they are taken for what their names say. Whatever is
/// loaded is checked byte for byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scrutiny {
    /// Whether they are there, as long as they must be.
    Lengths,
    /// Every byte: some of them were wrong.
    Contents,
}

/// Which tensors are wanted, and what is in memory already.
#[derive(Clone, Debug)]
pub(crate) struct FetchRequest {
    pub(crate) turn: Turn,
    /// The shard whose tensors they are.
    pub(crate) assignment: Arc<Assignment>,
    /// Those that another shard has already.
    pub(crate) taken_over: Arc<HeldTensors>,
    /// The shards that stay in memory beside it.
    pub(crate) beside: Vec<Arc<Assignment>>,
    pub(crate) scrutiny: Scrutiny,
}

/// How a fetch goes, and, as the last word, how it ended.
#[derive(Debug)]
pub(crate) enum FetchNews {
    /// So many of the missing bytes are at hand.
    Progress { turn: Turn, bytes_done: u64, bytes_total: u64, origins: Origins },
    /// A source of tensors has failed, and others are asked.
    Source { turn: Turn, text: String },
    /// The disk has no room for them at present.
    DiskFull { turn: Turn, text: String },
    /// All tensors are at hand; some came over the network.
    Fetched { turn: Turn, origins: Origins, places: TensorPlaces },
    /// Some are missing, and the fetch has ended.
    Failed { turn: Turn, text: String },
}

/// The task that gets the tensors of one assignment.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) request: FetchRequest,
    /// Who hears how it goes.
    pub(crate) news: mpsc::Sender<FetchNews>,
    /// To the coordinator.
    pub(crate) connection: Connection,
    /// What dials other workers.
    pub(crate) endpoint: Endpoint,
    /// Where other workers find what is at hand.
    pub(crate) shelf: Shelf,
    pub(crate) cache: PathBuf,
    /// The most that it may grow to.
    pub(crate) cache_size: Option<ByteCount>,
    /// Where it is noted what the shard uses of it.
    pub(crate) uses: HeldUses,
    pub(crate) model_folders: Vec<PathBuf>,
    /// The user's limit.
    pub(crate) memory: Option<ByteCount>,
    /// Threads that will compute.
    pub(crate) threads: usize,
}

/// Which tensors are on this machine, and which are not; equal ones are fetched once.
struct Survey {
    store: Store,
    places: Vec<(TensorRole, Place)>,
    missing: BTreeMap<[u8; 32], Missing>,
}

impl Fetch {
    /// Fetches what is missing, and tells how it goes, up to 4 times a second, and how it ended. What came before a failure
    /// is kept for a later try. A disk that is full may soon have room again, so it is tried for a while.
    pub(crate) async fn run(self) {
        let turn = self.request.turn;
        let mut waits = FULL_DISK_WAITS.into_iter();
        let peers = &self.request.assignment.peers;
        let received = Arc::new(Received::new(peers));
        let suppliers = Arc::new(Suppliers::new(self.connection.clone(), self.endpoint.clone(), peers));
        let last = loop {
            match (self.fetch(&suppliers, &received).await, waits.next()) {
                (Ok(places), _) => break FetchNews::Fetched { turn, origins: received.origins(), places },
                (Err(FetchError::Store(error)), Some(wait)) if error.is_full() => {
                    let text = format!("{error}; trying again in {} s", wait.as_secs());
                    self.tell(FetchNews::DiskFull { turn, text }).await;
                    sleep(wait).await;
                }
                (Err(error), _) => break FetchNews::Failed { turn, text: error.to_string() },
            }
        };
        self.tell(last).await;
    }

    async fn tell(&self, news: FetchNews) {
        // Without a receiver the worker has left its coordinator, and nobody waits for the tensors.
        let _ = self.news.send(news).await;
    }

    async fn fetch(&self, suppliers: &Arc<Suppliers>, received: &Arc<Received>) -> Result<TensorPlaces, FetchError> {
        let turn = self.request.turn;
        let survey = self.survey();
        let Survey { store, mut places, missing } = spawn_blocking(survey).await??;
        received.begin();
        let (notes, mut noted) = mpsc::channel(NOTES);
        let (suppliers, received) = (Arc::clone(suppliers), Arc::clone(received));
        let transfers = Transfers { store: store.clone(), suppliers, received, shelf: self.shelf.clone(), notes };
        let bytes_total: u64 = missing.values().map(|tensor| tensor.bytes).sum();
        let mut waiting = self.request.in_order(missing).into_iter();
        let mut tasks = JoinSet::new();
        let mut ticks = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while tasks.len() < IN_FLIGHT
                && let Some(tensor) = waiting.next()
            {
                tasks.spawn(transfers.clone().fetch(tensor));
            }
            tokio::select! {
                finished = tasks.join_next() => match finished {
                    Some(finished) => finished??,
                    None => break,
                },
                Some(text) = noted.recv() => self.tell(FetchNews::Source { turn, text }).await,
                _ = ticks.tick() => {
                    let (bytes_done, origins) = (transfers.received.here(), transfers.received.origins());
                    self.tell(FetchNews::Progress { turn, bytes_done, bytes_total, origins }).await;
                }
            }
        }
        while let Ok(text) = noted.try_recv() {
            self.tell(FetchNews::Source { turn, text }).await;
        }
        let tensors = self.request.still_needed();
        places.extend(tensors.filter_map(|(t, hash)| Some((t.role, store.find(hash, t.bytes)?))));
        Ok(places.into_iter().collect())
    }

    /// The blocking part: refuses a shard that does not fit into memory or the cache, then looks for each tensor on this
    /// machine.
    fn survey(&self) -> impl FnOnce() -> Result<Survey, FetchError> + use<> {
        let (request, memory, threads) = (self.request.clone(), self.memory, self.threads);
        let (cache, folders, shelf) = (self.cache.clone(), self.model_folders.clone(), self.shelf.clone());
        let (cache_size, uses) = (self.cache_size, self.uses.clone());
        move || {
            request.check_memory(memory, threads)?;
            let store = Store::open(&cache)?;
            let models = LocalModels::scan(&folders);
            let (mut places, mut cached) = (Vec::new(), Vec::new());
            for (tensor, hash) in request.still_needed() {
                match models.find(tensor, hash) {
                    Some(place) => {
                        shelf.put(place.clone(), tensor.bytes);
                        places.push((tensor.role, place));
                    }
                    None => cached.push((tensor, hash)),
                }
            }
            // From here on nobody deletes them, nor those that the shard has from another one.
            uses.prune();
            let there = request.taken_over().filter(|(tensor, hash)| store.find(*hash, tensor.bytes).is_some());
            let wanted = cached.iter().copied().chain(there).map(|(tensor, hash)| (hash, tensor.bytes)).collect();
            uses.hold(&request.assignment, room::reserve(&cache, &store, &wanted, cache_size)?);
            let mut missing = BTreeMap::new();
            for (tensor, hash) in cached {
                let (name, bytes) = (tensor.name.clone(), tensor.bytes);
                match store.find(hash, bytes) {
                    Some(place) if request.scrutiny == Scrutiny::Lengths || place.holds(bytes) => {
                        store.touch(&place);
                        shelf.put(place, bytes);
                    }
                    found => {
                        if let Some(damaged) = found {
                            tracing::warn!(tensor = name, path = %damaged.path.display(), "damaged: fetching it anew");
                            delete(&damaged.path)?;
                        }
                        let sources = request.assignment.sources.get(&hash).cloned().unwrap_or_default();
                        missing.insert(*hash.as_bytes(), Missing { name, hash, bytes, sources });
                    }
                }
            }
            store.check_space(missing.values().map(|tensor| tensor.bytes).sum())?;
            Ok(Survey { store, places, missing })
        }
    }
}

impl FetchRequest {
    /// The tensors that no other shard has.
    fn still_needed(&self) -> impl Iterator<Item = (&TensorSpec, Hash)> {
        self.tensors().filter(|(tensor, _)| !self.taken_over.contains_key(&tensor.role))
    }

    /// The tensors that another shard has.
    fn taken_over(&self) -> impl Iterator<Item = (&TensorSpec, Hash)> {
        self.tensors().filter(|(tensor, _)| self.taken_over.contains_key(&tensor.role))
    }

    fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, Hash)> {
        self.assignment.spec.tensors.iter().zip(self.assignment.hashes.iter().copied())
    }

    /// What others wait for comes first, and what another worker gets before this one comes last: so nobody waits for
    /// somebody who waits.
    fn in_order(&self, missing: BTreeMap<[u8; 32], Missing>) -> Vec<Missing> {
        let mut missing: Vec<_> = missing.into_values().collect();
        let place = |tensor: &Missing| {
            let is_awaited = self.assignment.awaited.contains(&tensor.hash);
            let is_coming = tensor.sources.first().is_some_and(|source| source.stock == Stock::Coming);
            match (is_awaited, is_coming) {
                (true, _) => 0,
                (false, false) => 1,
                (false, true) => 2,
            }
        };
        missing.sort_by_key(place);
        missing
    }

    /// Whether all shards fit together, with the user's limit and so many threads.
    fn check_memory(&self, limit: Option<ByteCount>, threads: usize) -> Result<(), FetchError> {
        let needed = needed_together(&self.assignment, self.beside.iter().map(|other| &**other), threads);
        let allowance = Allowance::measure(limit);
        if needed <= allowance.bytes {
            return Ok(());
        }
        let range = |a: &Assignment| format!("layers {}-{}", a.layers.start, a.layers.end - 1);
        let mut layers = range(&self.assignment);
        for assignment in &self.beside {
            layers = format!("{layers} beside {} of plan {}", range(assignment), assignment.epoch);
        }
        Err(FetchError::Memory { needed, layers, allowance })
    }
}
