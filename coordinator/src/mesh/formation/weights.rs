//! Serves the bytes of tensors, as they lie in the file, to whoever holds the plan that names them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use qmesh_models::spec::TensorSpec;
use qmesh_net::{NetError, Pacer, RangeServer};

use crate::model::Model;

/// Tensors by content. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TensorServer {
    model: Arc<Model>,
    tensors: Arc<HashMap<[u8; 32], TensorSpec>>,
    pacer: Arc<Mutex<Pacer>>,
    sent: Arc<AtomicU64>,
}

impl TensorServer {
    /// Serves all tensors of the model; `hashes` are theirs, in their order.
    pub(crate) fn new(model: Arc<Model>, hashes: &[[u8; 32]]) -> Self {
        let tensors = hashes.iter().copied().zip(model.spec.tensors.iter().cloned()).collect();
        Self { model, tensors: Arc::new(tensors), pacer: Arc::default(), sent: Arc::default() }
    }

    /// A step leaves: what is served makes way for those that follow.
    pub(crate) fn stepped(&self, now: Instant) {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner).stepped(now);
    }

    /// Bytes that have been sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Answers one request that came from there; the peer stops reading when it has enough.
    ///
    /// # Errors
    /// The link's.
    pub(crate) async fn serve(&self, mut server: RangeServer, from: SocketAddr) -> Result<(), NetError> {
        let request = server.request();
        let Some(tensor) = self.tensors.get(&request.tensor) else {
            return server.refuse("this mesh has no tensor of that hash").await;
        };
        let end = request.offset.checked_add(request.bytes).filter(|&end| end <= tensor.bytes);
        let Some(end) = end else { return server.refuse("the range lies outside of the tensor").await };
        server.accept(request.bytes).await?;
        let mut at = request.offset;
        while at < end {
            let bytes = (end - at).min(PIECE_BYTES);
            match self.read(tensor, at, bytes).await {
                Ok(piece) => {
                    tokio::time::sleep(self.delay(from, bytes)).await;
                    server.write(piece).await?;
                    self.sent.fetch_add(bytes, Ordering::Relaxed);
                }
                Err(text) => {
                    // The peer notices that bytes are missing.
                    tracing::error!("reading {}: {text}", tensor.name);
                    return server.finish();
                }
            }
            at += bytes;
        }
        server.finish()
    }

    /// How long so many bytes are to wait before they leave for there.
    fn delay(&self, to: SocketAddr, bytes: u64) -> Duration {
        self.pacer.lock().unwrap_or_else(PoisonError::into_inner).delay(to, Instant::now(), bytes)
    }

    async fn read(&self, tensor: &TensorSpec, offset: u64, bytes: u64) -> Result<Bytes, String> {
        let (model, part, at) = (Arc::clone(&self.model), tensor.part, tensor.offset + offset);
        let reading = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(bytes).map_err(|e| e.to_string())?];
            model.file.read_range(part, at, &mut piece).map_err(|e| e.to_string())?;
            Ok(Bytes::from(piece))
        });
        reading.await.map_err(|e| e.to_string())?
    }
}

/// Bytes that are read and handed on at a time.
const PIECE_BYTES: u64 = 1 << 20;
