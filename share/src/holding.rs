//! The giving side: what this machine has of a shared model, for readers that prove they may read it.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use qmesh_net::{
    CloseCode, Connection, Endpoint, Holder, Incoming, NetError, PeerId, RangeRequest, RangeServer, RateLimit,
    ReadGrant, ReadRequest, ReadSecret,
    limits::{HOLDERS, JOIN_DEADLINE},
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{file::PartialFile, manifest::SignedManifest};

/// Readers at a time; more are sent away until one leaves.
const READERS: usize = 64;
/// Ranges that one reader is sent at a time; more wait.
const RANGES: usize = 8;
/// Bytes that are read and sent at a time.
const PIECE_BYTES: u64 = 256 << 10;
/// News that may wait to be told.
const TOLD_WAITING: usize = 64;

/// What this machine has of a model, and whom it gives it to. Clones share it.
#[derive(Clone, Debug)]
pub struct Holding(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    manifest: SignedManifest,
    files: HashMap<[u8; 32], PartialFile>,
    secret: ReadSecret,
    limit: Option<Mutex<RateLimit>>,
    /// The other holders that are connected here.
    others: Mutex<BTreeMap<PeerId, Vec<String>>>,
    told: mpsc::Sender<Told>,
}

/// What a person hears of the giving.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Somebody may read now.
    Came {
        /// Its key.
        reader: PeerId,
        /// Where it is.
        from: SocketAddr,
    },
    /// It is gone.
    Left {
        /// Its key.
        reader: PeerId,
        /// What it was sent.
        bytes: u64,
    },
}

/// A reader, which may be among the others for as long as this lives.
struct Listed {
    holding: Holding,
    peer: PeerId,
}

impl Holding {
    /// Holds these files, as the manifest lists them, for whoever has the secret; gives at most so many bytes a second.
    pub fn new(
        manifest: SignedManifest,
        files: impl IntoIterator<Item = PartialFile>,
        secret: ReadSecret,
        bytes_per_second: Option<u64>,
    ) -> (Self, mpsc::Receiver<Told>) {
        let (told, hears) = mpsc::channel(TOLD_WAITING);
        let files = files.into_iter().map(|file| (file.id(), file)).collect();
        let limit = bytes_per_second.map(|rate| Mutex::new(RateLimit::new(rate)));
        (Self(Arc::new(Inner { manifest, files, secret, limit, others: Mutex::default(), told })), hears)
    }

    /// Gives to whoever connects, until it is dropped or the endpoint is closed.
    pub async fn serve(self, endpoint: Endpoint) {
        let mut readers = JoinSet::new();
        while let Some(connection) = endpoint.accept().await {
            while readers.try_join_next().is_some() {}
            if readers.len() >= READERS {
                connection.close(CloseCode::Limit, "too many read this at the moment: try again later");
                continue;
            }
            let holding = self.clone();
            readers.spawn(async move {
                if let Err(error) = holding.attend(&connection).await {
                    tracing::debug!(%error, "a reader left");
                }
            });
        }
    }

    /// Looks after one reader until it is gone.
    async fn attend(&self, connection: &Connection) -> Result<(), NetError> {
        let may_read = match timeout(JOIN_DEADLINE, connection.accept_stream()).await {
            Ok(Ok(Incoming::Reading(reading))) => self.answer(connection, reading).await?,
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Incoming::Range(_) | Incoming::Frames(_))) | Err(_) => false,
        };
        if !may_read {
            connection.close(CloseCode::Auth, "it was not proved that you may read this");
            return Ok(());
        }
        let _listed = Listed { holding: self.clone(), peer: connection.peer() };
        let (reader, from, sent) = (connection.peer(), connection.remote_address(), Arc::new(AtomicU64::new(0)));
        self.tell(Told::Came { reader, from });
        let error = self.give(connection, &sent).await;
        self.tell(Told::Left { reader, bytes: sent.load(Ordering::Relaxed) });
        error
    }

    /// Answers what an admitted reader asks for.
    async fn give(&self, connection: &Connection, sent: &Arc<AtomicU64>) -> Result<(), NetError> {
        let mut ranges = JoinSet::new();
        loop {
            match connection.accept_stream().await? {
                Incoming::Range(range) => {
                    if ranges.len() >= RANGES {
                        ranges.join_next().await;
                    }
                    while ranges.try_join_next().is_some() {}
                    let (holding, sent) = (self.clone(), Arc::clone(sent));
                    ranges.spawn(async move {
                        if let Err(error) = holding.send(range, &sent).await {
                            tracing::debug!(%error, "could not give a chunk");
                        }
                    });
                }
                // It wants to know who else is there by now.
                Incoming::Reading(reading) => drop(self.answer(connection, reading).await?),
                Incoming::Frames(_) => {
                    connection.close(CloseCode::Malformed, "a link, where a model is shared");
                    return Ok(());
                }
            }
        }
    }

    /// Lets it read and notes whether it gives as well, or refuses. Whether it may read.
    async fn answer(&self, connection: &Connection, reading: ReadRequest) -> Result<bool, NetError> {
        if let Err(why) = reading.judge(connection, &self.0.secret) {
            reading.refuse(why).await;
            return Ok(false);
        }
        let peer = reading.peer();
        let mut holders: Vec<_> = self.others().iter().map(|(id, at)| (*id, at.clone())).collect();
        holders.retain(|(id, _)| *id != peer);
        holders.truncate(HOLDERS);
        self.list(peer, connection.remote_address(), reading.holder());
        reading.grant(connection, ReadGrant { holders }).await?;
        Ok(true)
    }

    /// Others are told of it if it gives something.
    fn list(&self, peer: PeerId, seen: SocketAddr, holder: &Holder) {
        if holder.gives {
            let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port()).to_string();
            let others = holder.addresses.iter().filter(|address| **address != seen).cloned();
            let addresses = std::iter::once(seen.clone()).chain(others).collect();
            self.others().insert(peer, addresses);
        } else {
            self.others().remove(&peer);
        }
    }

    async fn send(&self, mut range: RangeServer, sent: &AtomicU64) -> Result<(), NetError> {
        let request = range.request();
        if request.tensor == self.0.manifest.hash() {
            let bytes = Bytes::copy_from_slice(self.0.manifest.bytes());
            if request.offset != 0 || request.bytes < bytes.len() as u64 {
                return range.refuse("a manifest is given whole").await;
            }
            range.accept(bytes.len() as u64).await?;
            range.write(bytes).await?;
            return range.finish();
        }
        let Some(file) = self.0.files.get(&request.tensor).cloned() else {
            return range.refuse("this is not shared here").await;
        };
        if request.bytes > self.0.manifest.manifest().chunk_bytes || !file.has_range(request.offset, request.bytes) {
            return range.refuse("this part is not here yet").await;
        }
        range.accept(request.bytes).await?;
        self.send_bytes(range, file, request, sent).await
    }

    async fn send_bytes(
        &self,
        mut range: RangeServer,
        file: PartialFile,
        request: RangeRequest,
        sent: &AtomicU64,
    ) -> Result<(), NetError> {
        let end = request.offset + request.bytes;
        let mut at = request.offset;
        while at < end {
            let bytes = (end - at).min(PIECE_BYTES);
            if let Some(limit) = &self.0.limit {
                let delay = limit.lock().unwrap_or_else(PoisonError::into_inner).delay(Instant::now(), bytes);
                sleep(delay).await;
            }
            let (from, mut piece) = (file.clone(), vec![0; bytes as usize]);
            let read = spawn_blocking(move || from.read(at, &mut piece).map(|()| piece)).await;
            match read.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string())) {
                Ok(piece) => range.write(piece.into()).await?,
                Err(text) => {
                    // The reader notices that bytes are missing, and asks others.
                    tracing::error!("{text}");
                    return range.finish();
                }
            }
            sent.fetch_add(bytes, Ordering::Relaxed);
            at += bytes;
        }
        range.finish()
    }

    fn others(&self) -> std::sync::MutexGuard<'_, BTreeMap<PeerId, Vec<String>>> {
        self.0.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who listens may be slower than readers come and go.
    fn tell(&self, told: Told) {
        let _heard = self.0.told.try_send(told);
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.holding.others().remove(&self.peer);
    }
}
