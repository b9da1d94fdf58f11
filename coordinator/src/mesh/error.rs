//! Why a mesh could not start.

use std::io;

use qmesh_models::weights::WeightsError;
use qmesh_net::{KeyFileError, NetError};
use tokio::task::JoinError;

use super::members::MembersError;
use crate::local::CannotStart;

/// Why a mesh could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// The endpoint, the key or the secret.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The key's or the secret's file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The book of admitted workers.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// The model's file.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The system gives no thread.
    #[error("cannot start the mesh's thread: {0}")]
    Thread(#[from] io::Error),
    /// The process in which a small model drafts.
    #[error(transparent)]
    Drafting(#[from] CannotStart),
    /// Hashing the model's tensors ended before its time.
    #[error("hashing the model failed: {0}")]
    Hashing(#[source] JoinError),
    /// The mesh's thread ended before the mesh had started.
    #[error("starting the mesh failed: {0}")]
    Starting(#[source] JoinError),
    /// Sessions of no positions, or steps of no rows.
    #[error("the context and the chunk must hold at least one position")]
    NoRoom,
    /// Not even one session of the whole context would fit.
    #[error("{kv_positions} KV positions cannot hold a context of {context}: lower --ctx-size or raise --parallel")]
    KvBelowContext {
        /// Of all sessions together.
        kv_positions: usize,
        /// The most positions of one session.
        context: usize,
    },
}
