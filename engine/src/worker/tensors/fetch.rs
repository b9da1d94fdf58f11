//! Getting a shard's tensors: from the cache, from the user's model files, or from the coordinator in ranges, which are
//! verified before they get a name. No byte of a tensor that the shard does not hold is asked for, or kept.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use blake3::Hash;
use qmesh_models::{
    bytes::ByteCount,
    spec::{TensorRole, TensorSpec},
};
use qmesh_net::{Connection, NetError, RangeRequest};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use super::{
    holding::needed_together,
    local::LocalModels,
    room::{self, RoomError},
    store::{Place, Store, StoreError, TensorPlaces, Verdict},
    uses::HeldUses,
};
use crate::{
    backend::HeldTensors,
    worker::{assignment::Assignment, memory::Allowance, turn::Turn},
};

/// Bytes asked for at once.
const RANGE_BYTES: u64 = 8 << 20;
/// Tensors fetched side by side.
const IN_FLIGHT: usize = 4;
/// How often a tensor is fetched whose bytes turn out wrong.
const TRIES: usize = 2;
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
    Progress { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// The disk has no room for them at present.
    DiskFull { turn: Turn, text: String },
    /// All tensors are at hand, `bytes` of them came over the network.
    Fetched { turn: Turn, bytes: u64, places: TensorPlaces },
    /// Some are missing, and the fetch has ended.
    Failed { turn: Turn, text: String },
}

/// The task that gets the tensors of one assignment.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) request: FetchRequest,
    /// Who hears how it goes.
    pub(crate) news: mpsc::Sender<FetchNews>,
    pub(crate) connection: Connection,
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

/// Why some of a shard's tensors are missing.
#[derive(Debug, Error)]
enum FetchError {
    #[error("needs {needed} for {layers}, this worker has {}: {}", allowance.bytes, allowance.remedy())]
    Memory { needed: ByteCount, layers: String, allowance: Allowance },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Room(RoomError),
    #[error("tensor {tensor}: {source}")]
    Net { tensor: String, source: NetError },
    #[error("tensor {tensor}: the coordinator has {had} of its {bytes} bytes")]
    Short { tensor: String, had: u64, bytes: u64 },
    #[error("tensor {tensor}: what the coordinator sends does not have the promised hash")]
    Wrong { tensor: String },
    #[error("a bug in this program (please report it): {0}")]
    Task(#[from] JoinError),
}

/// A tensor that is to be fetched.
#[derive(Debug)]
struct Missing {
    name: String,
    hash: Hash,
    bytes: u64,
}

/// Bytes of the missing tensors so far.
#[derive(Debug, Default)]
struct Counters {
    /// At hand, some perhaps from an earlier try.
    here: AtomicU64,
    /// Came over the network.
    received: AtomicU64,
}

/// All tensors are at hand.
struct Fetched {
    places: TensorPlaces,
    /// Bytes that came over the network.
    bytes: u64,
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
        let last = loop {
            match (self.fetch().await, waits.next()) {
                (Ok(Fetched { places, bytes }), _) => break FetchNews::Fetched { turn, bytes, places },
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

    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let turn = self.request.turn;
        let survey = self.survey();
        let Survey { store, mut places, missing } = spawn_blocking(survey).await??;
        let counters = Arc::new(Counters::default());
        let bytes_total: u64 = missing.values().map(|tensor| tensor.bytes).sum();
        let mut waiting = missing.into_values();
        let mut tasks = JoinSet::new();
        let mut ticks = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while tasks.len() < IN_FLIGHT
                && let Some(tensor) = waiting.next()
            {
                tasks.spawn(fetch_tensor(self.connection.clone(), store.clone(), tensor, Arc::clone(&counters)));
            }
            tokio::select! {
                finished = tasks.join_next() => match finished {
                    Some(finished) => finished??,
                    None => break,
                },
                _ = ticks.tick() => {
                    let bytes_done = counters.here.load(Ordering::Relaxed);
                    self.tell(FetchNews::Progress { turn, bytes_done, bytes_total }).await;
                }
            }
        }
        let tensors = self.request.still_needed();
        places.extend(tensors.filter_map(|(t, hash)| Some((t.role, store.find(hash, t.bytes)?))));
        Ok(Fetched { places: places.into_iter().collect(), bytes: counters.received.load(Ordering::Relaxed) })
    }

    /// The blocking part: refuses a shard that does not fit into memory or the cache, then looks for each tensor on this
    /// machine.
    fn survey(&self) -> impl FnOnce() -> Result<Survey, FetchError> + use<> {
        let (request, memory, threads) = (self.request.clone(), self.memory, self.threads);
        let (cache, cache_size, folders) = (self.cache.clone(), self.cache_size, self.model_folders.clone());
        let uses = self.uses.clone();
        move || {
            request.check_memory(memory, threads)?;
            let store = Store::open(&cache)?;
            let models = LocalModels::scan(&folders);
            let (mut places, mut cached) = (Vec::new(), Vec::new());
            for (tensor, hash) in request.still_needed() {
                match models.find(tensor, hash) {
                    Some(place) => places.push((tensor.role, place)),
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
                    Some(place) if request.scrutiny == Scrutiny::Lengths || place.holds(bytes) => store.touch(&place),
                    found => {
                        if let Some(damaged) = found {
                            tracing::warn!(tensor = name, path = %damaged.path.display(), "damaged: fetching it anew");
                            store.remove(hash)?;
                        }
                        missing.insert(*hash.as_bytes(), Missing { name, hash, bytes });
                    }
                }
            }
            store.check_space(missing.values().map(|tensor| tensor.bytes).sum())?;
            Ok(Survey { store, places, missing })
        }
    }
}

/// A disk without room is the same wherever it shows: it is tried again.
impl From<RoomError> for FetchError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Store(error) => Self::Store(error),
            error @ (RoomError::ShardTooLarge { .. } | RoomError::InUse { .. }) => Self::Room(error),
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

async fn fetch_tensor(
    connection: Connection,
    store: Store,
    tensor: Missing,
    counters: Arc<Counters>,
) -> Result<(), FetchError> {
    let Missing { name, hash, bytes } = tensor;
    for _ in 0..TRIES {
        let begin = store.clone();
        let mut part = spawn_blocking(move || begin.resume(hash, bytes)).await??;
        counters.here.fetch_add(part.have(), Ordering::Relaxed);
        while part.have() < bytes {
            let offset = part.have();
            let request = RangeRequest { tensor: *hash.as_bytes(), offset, bytes: RANGE_BYTES.min(bytes - offset) };
            let failed = |source| FetchError::Net { tensor: name.clone(), source };
            let mut range = connection.fetch_range(request).await.map_err(failed)?;
            if range.bytes_total() == 0 {
                return Err(FetchError::Short { tensor: name, had: offset, bytes });
            }
            while let Some(piece) = range.next().await.map_err(failed)? {
                counters.here.fetch_add(piece.len() as u64, Ordering::Relaxed);
                counters.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
                part = spawn_blocking(move || part.append(&piece).map(|()| part)).await??;
            }
        }
        if spawn_blocking(move || part.finish()).await?? == Verdict::Kept {
            return Ok(());
        }
        tracing::warn!(tensor = name, "fetched bytes have the wrong hash");
        counters.here.fetch_sub(bytes, Ordering::Relaxed);
    }
    Err(FetchError::Wrong { tensor: name })
}
