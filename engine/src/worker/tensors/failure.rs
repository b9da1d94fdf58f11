//! Why some of a shard's tensors are missing.

use qmesh_models::bytes::ByteCount;
use qmesh_net::NetError;
use thiserror::Error;
use tokio::task::JoinError;

use super::{room::RoomError, store::StoreError};
use crate::worker::memory::Allowance;

/// Why some of a shard's tensors are missing.
#[derive(Debug, Error)]
pub(super) enum FetchError {
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

/// A disk without room is the same wherever it shows: it is tried again.
impl From<RoomError> for FetchError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Store(error) => Self::Store(error),
            error @ (RoomError::ShardTooLarge { .. } | RoomError::InUse { .. }) => Self::Room(error),
        }
    }
}
