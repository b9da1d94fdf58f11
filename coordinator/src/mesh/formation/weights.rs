//! Serves the bytes of tensors, as they lie in the file, to whoever holds the plan that names them.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use qmesh_models::spec::TensorSpec;
use qmesh_net::{NetError, RangeServer};

use crate::model::Model;

/// Tensors by content. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TensorServer {
    model: Arc<Model>,
    tensors: Arc<HashMap<[u8; 32], TensorSpec>>,
}

impl TensorServer {
    /// `hashes` are those of the model's tensors, in their order.
    pub(crate) fn new(model: Arc<Model>, hashes: &[[u8; 32]]) -> Self {
        let tensors = hashes.iter().copied().zip(model.spec.tensors.iter().cloned()).collect();
        Self { model, tensors: Arc::new(tensors) }
    }

    /// Answers one request; the peer stops reading when it has enough.
    ///
    /// # Errors
    /// The link's.
    pub(crate) async fn serve(&self, mut server: RangeServer) -> Result<(), NetError> {
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
                Ok(piece) => server.write(piece).await?,
                Err(text) => {
                    // Fewer bytes than announced fail at the peer too.
                    tracing::error!("reading {}: {text}", tensor.name);
                    return server.finish();
                }
            }
            at += bytes;
        }
        server.finish()
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

/// Read and handed on at a time.
const PIECE_BYTES: u64 = 1 << 20;
