//! What a worker is asked to do, and how it ended.

use std::{path::PathBuf, sync::Arc};

use qmesh_models::bytes::ByteCount;
use qmesh_net::{RejectCode, Ticket};

use super::console::Audience;
use crate::backend::Backend;

/// A worker's resolved settings.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where its coordinator is, and the right to join.
    pub ticket: Ticket,
    /// The file that the ticket came from, which may hold a newer one once the coordinator has started again.
    pub ticket_file: Option<PathBuf>,
    /// The name it would like to have.
    pub name: String,
    /// The most memory it may use, in bytes; what the machine has free where `None`.
    pub memory: Option<ByteCount>,
    /// Folder of the tensor cache.
    pub cache: PathBuf,
    /// The most bytes of tensors that may be in it; as many as the disk takes where `None`.
    pub cache_size: Option<ByteCount>,
    /// Folders whose model files it may read tensors from.
    pub model_folders: Vec<PathBuf>,
    /// Whether it asks the local network for its coordinator.
    pub search: Search,
    /// What it does when its coordinator is gone.
    pub stay: Stay,
    /// Who reads what it says.
    pub audience: Audience,
    /// What it computes with.
    pub backend: Arc<dyn Backend>,
    /// Where it finds out how fast that is.
    pub measured_by: MeasuredBy,
}

/// Where a worker finds out how fast it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MeasuredBy {
    /// In this process, whose memory may keep a trace of it.
    ThisProcess,
    /// In a process of its own, with this program, which understands `measure --threads N` as `shard-worker` does.
    Program(PathBuf),
}

/// Where a worker looks for a coordinator that does not answer at the addresses of the ticket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Search {
    /// On the local network as well, by multicast DNS.
    #[default]
    Lan,
    /// Nowhere else.
    Addresses,
}

/// What a worker does when its coordinator is gone.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Stay {
    /// It comes back as soon as it can.
    #[default]
    ForGood,
    /// It ends.
    Once,
}

/// How a worker ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Exit {
    /// The user wanted it to.
    Asked,
    /// The coordinator said goodbye.
    Dismissed,
    /// The coordinator could not be reached, or was lost.
    Lost,
    /// The coordinator does not let it in.
    Rejected {
        /// The kind of refusal.
        code: RejectCode,
        /// One line for a person.
        text: String,
    },
}
