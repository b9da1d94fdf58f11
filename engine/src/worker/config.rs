//! What a worker is asked to do, and how it ended.

use std::{path::PathBuf, sync::Arc};

use qmesh_discovery::Dht;
use qmesh_models::bytes::ByteCount;
use qmesh_net::{PeerId, RejectCode, Ticket};

use super::{console::Audience, known_mesh::KnownMesh};
use crate::backend::Backend;

/// A worker's resolved settings.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Where its coordinator is, and by what it is let in.
    pub way_in: WayIn,
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
    /// Where else it looks for its coordinator.
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

/// Where a worker's coordinator is, and by what it is let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WayIn {
    /// By a ticket, which names both.
    Ticket(Ticket),
    /// By its own key, which that mesh has admitted before, or shall be asked to.
    Key {
        /// Where it is, and which key it must have.
        mesh: KnownMesh,
        /// Where that is remembered once it has let the worker in.
        kept_in: Option<PathBuf>,
    },
}

impl WayIn {
    /// Where to try, each as `host:port`.
    pub fn addresses(&self) -> &[String] {
        match self {
            Self::Ticket(ticket) => &ticket.addresses,
            Self::Key { mesh, .. } => &mesh.addresses,
        }
    }

    /// The key that the coordinator must have.
    pub fn coordinator(&self) -> PeerId {
        match self {
            Self::Ticket(ticket) => ticket.coordinator,
            Self::Key { mesh, .. } => mesh.coordinator,
        }
    }
}

/// Where a worker finds out how fast it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MeasuredBy {
    /// In this process, whose memory may keep a trace of it.
    ThisProcess,
    /// In a process of its own, with this program, which understands `measure --threads N` as `shard-worker` does.
    Program(PathBuf),
}

/// Where a worker looks for a coordinator that does not answer at the addresses it knows.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Whether on the local network, by multicast DNS.
    pub lan: bool,
    /// On the DHT, if it has a ticket.
    pub dht: Option<Dht>,
    /// Folder where it keeps where it has found one; it does not outlive the process where `None`.
    pub remembered_in: Option<PathBuf>,
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
pub enum WorkerEnd {
    /// The user wanted it to.
    Asked,
    /// The coordinator said goodbye.
    Dismissed,
    /// The coordinator could not be reached, or was lost.
    Lost,
    /// The coordinator had let it in, and wants it no longer.
    SentAway {
        /// One line for a person.
        text: String,
    },
    /// The coordinator does not let it in.
    Rejected {
        /// The kind of refusal.
        code: RejectCode,
        /// One line for a person.
        text: String,
    },
}
