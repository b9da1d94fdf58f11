//! Having a shard's tensors: from the cache, from the user's model files, or from the coordinator in ranges, verified
//! before they get a name. Never asks for, or keeps, a byte of a tensor that the shard does not hold.

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
use qmesh_models::{bytes::ByteCount, spec::TensorRole};
use qmesh_net::{Connection, NetError, RangeRequest};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    assignment::Assignment,
    event::{Event, Turn},
    local::LocalModels,
    memory::Allowance,
    store::{Place, Store, StoreError, Verdict, Weights},
};

/// Bytes asked for at once.
const RANGE_BYTES: u64 = 8 << 20;
/// Tensors fetched side by side.
const IN_FLIGHT: usize = 4;
/// How often a tensor is fetched whose bytes turn out wrong.
const TRIES: usize = 2;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Everything needed to have the tensors of one assignment.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) turn: Turn,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) connection: Connection,
    pub(super) cache: PathBuf,
    pub(super) model_folders: Vec<PathBuf>,
    /// The user's limit.
    pub(super) memory: Option<ByteCount>,
    /// Threads that will compute.
    pub(super) threads: usize,
    pub(super) assignment: Arc<Assignment>,
}

/// Why the tensors of a shard cannot be had.
#[derive(Debug, Error)]
enum FetchError {
    #[error("needs {needed} for layers {first}-{last}, this worker has {}: {}", allowance.bytes, allowance.remedy())]
    Memory { needed: ByteCount, first: usize, last: usize, allowance: Allowance },
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// Bytes so far.
#[derive(Debug, Default)]
struct Counters {
    /// At hand, however they came.
    here: AtomicU64,
    /// Came over the network.
    received: AtomicU64,
}

/// What is here, and what is not; equal tensors are fetched once.
struct Survey {
    store: Store,
    places: Vec<(TensorRole, Place)>,
    missing: BTreeMap<[u8; 32], Missing>,
}

impl Fetch {
    /// Fetches what is missing and tells how it goes, up to 4 times a second, and how it ended. What came before a
    /// failure is kept for a later try.
    pub(super) async fn run(self) {
        let (turn, events) = (self.turn, self.events.clone());
        let event = match self.fetch().await {
            Ok((weights, bytes)) => Event::Fetched { turn, bytes, weights },
            Err(error) => Event::NotFetched { turn, text: error.to_string() },
        };
        // Without a receiver the worker has left its coordinator, and nobody waits for the tensors.
        let _ = events.send(event).await;
    }

    async fn fetch(self) -> Result<(Weights, u64), FetchError> {
        let (turn, events, bytes_total) = (self.turn, self.events.clone(), self.assignment.weight_bytes());
        let (connection, assignment) = (self.connection.clone(), Arc::clone(&self.assignment));
        let Survey { store, mut places, missing } = spawn_blocking(move || self.survey()).await??;
        let counters = Arc::new(Counters::default());
        let missing_bytes: u64 = missing.values().map(|tensor| tensor.bytes).sum();
        counters.here.store(bytes_total.saturating_sub(missing_bytes), Ordering::Relaxed);
        let mut waiting = missing.into_values();
        let mut tasks = JoinSet::new();
        let mut ticks = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while tasks.len() < IN_FLIGHT
                && let Some(tensor) = waiting.next()
            {
                tasks.spawn(fetch_tensor(connection.clone(), store.clone(), tensor, Arc::clone(&counters)));
            }
            tokio::select! {
                finished = tasks.join_next() => match finished {
                    Some(finished) => finished??,
                    None => break,
                },
                _ = ticks.tick() => {
                    let bytes_done = counters.here.load(Ordering::Relaxed);
                    let _ = events.send(Event::Fetching { turn, bytes_done, bytes_total }).await;
                }
            }
        }
        let tensors = assignment.spec.tensors.iter().zip(&assignment.hashes);
        places.extend(tensors.filter_map(|(t, &hash)| Some((t.role, store.find(hash, t.bytes)?))));
        Ok((places.into_iter().collect(), counters.received.load(Ordering::Relaxed)))
    }

    /// Refuses what cannot fit, then looks for each tensor here. Blocks.
    fn survey(self) -> Result<Survey, FetchError> {
        let assignment = self.assignment;
        let (needed, allowance) = (assignment.needed_bytes(self.threads), Allowance::measure(self.memory));
        if needed > allowance.bytes {
            let (first, last) = (assignment.layers.start, assignment.layers.end - 1);
            return Err(FetchError::Memory { needed, first, last, allowance });
        }
        let store = Store::open(&self.cache)?;
        let models = LocalModels::scan(&self.model_folders);
        let (mut places, mut missing) = (Vec::new(), BTreeMap::new());
        for (tensor, &hash) in assignment.spec.tensors.iter().zip(&assignment.hashes) {
            let (name, bytes) = (tensor.name.clone(), tensor.bytes);
            match models.find(tensor, hash) {
                Some(place) => places.push((tensor.role, place)),
                None if store.find(hash, bytes).is_some() => {}
                None => drop(missing.insert(*hash.as_bytes(), Missing { name, hash, bytes })),
            }
        }
        store.check_space(missing.values().map(|tensor| tensor.bytes).sum())?;
        Ok(Survey { store, places, missing })
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
        let mut part = spawn_blocking(move || begin.part(hash, bytes)).await??;
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
