//! Answers what other workers ask for: bytes of tensors from the cache or the user's model files.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use blake3::Hash;
use bytes::Bytes;
use qmesh_net::{Connection, NetError, RangeServer, limits::PEER_SEND_WINDOW_BYTES};
use tokio::{sync::Semaphore, task::spawn_blocking, time::sleep};

use super::{
    shelf::{Found, Shelf},
    store::Place,
};

/// Bytes that are read and sent at a time: small, as every thread that has read one keeps room for it.
const PIECE_BYTES: u64 = 64 << 10;
/// Pieces that are in memory at a time, whoever asked: the memory is the shards'.
const PIECES: usize = 2;
/// How long who asks for a tensor that is on its way is kept waiting before it hears so.
const COMING_PATIENCE: Duration = Duration::from_secs(5);

/// Serves tensors. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    shelf: Shelf,
    pieces: Arc<Semaphore>,
}

impl Server {
    /// Serves what is on the shelf.
    pub(crate) fn new(shelf: Shelf) -> Self {
        Self { shelf, pieces: Arc::new(Semaphore::new(PIECES)) }
    }

    /// Bounds what a peer's connection may have under way from here.
    pub(crate) fn welcome(connection: &Connection) {
        connection.bound_sends(PEER_SEND_WINDOW_BYTES);
    }

    /// Answers one request that came in on this connection.
    ///
    /// # Errors
    /// The link's.
    pub(crate) async fn serve(&self, connection: &Connection, mut server: RangeServer) -> Result<(), NetError> {
        let (peer, request) = (server.peer(), server.request());
        let hash = Hash::from_bytes(request.tensor);
        let (place, bytes) = match self.shelf.wait(peer, hash, COMING_PATIENCE).await {
            Found::Here { place, bytes } => (place, bytes),
            // No byte of it yet: whoever asks may ask again.
            Found::Coming => {
                server.accept(0).await?;
                return server.finish();
            }
            Found::Nothing => return server.refuse("this worker does not have the tensor").await,
            Found::Stranger => return server.refuse("no plan names the peer as one who may ask here").await,
        };
        let end = request.offset.checked_add(request.bytes).filter(|&end| end <= bytes);
        let Some(end) = end else { return server.refuse("the range lies outside of the tensor").await };
        server.accept(request.bytes).await?;
        let mut at = request.offset;
        while at < end {
            // The plan may be over; the peer notices that bytes are missing.
            if self.shelf.look(peer, hash) == Found::Stranger {
                return server.finish();
            }
            let length = (end - at).min(PIECE_BYTES);
            sleep(self.shelf.delay(connection.remote_address(), Instant::now(), length)).await;
            // The semaphore is never closed.
            let _place_in_memory = self.pieces.acquire().await;
            match read(place.clone(), at, length).await {
                Ok(piece) => server.write(piece).await?,
                Err(error) => {
                    tracing::warn!(path = %place.path.display(), %error, "cannot read what a peer asked for");
                    return server.finish();
                }
            }
            at += length;
        }
        server.finish()
    }
}

async fn read(place: Place, at: u64, bytes: u64) -> io::Result<Bytes> {
    let reading = spawn_blocking(move || {
        let mut piece = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        File::open(&place.path)?.read_exact_at(&mut piece, place.offset + at)?;
        Ok(Bytes::from(piece))
    });
    reading.await.map_err(io::Error::other)?
}
