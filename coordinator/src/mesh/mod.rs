//! The mesh: who is connected, who holds which layers, and the pipeline they form.
//!
//! `roster` and `scheduler` decide, as state machines; `run` is the task that feeds them and carries out what they say;
//! `links` and `weights` move messages, frames and tensor bytes.

mod draft;
mod links;
mod openings;
mod pace;
mod pages;
mod probe;
mod roster;
mod run;
mod scheduler;
mod sequence;
pub mod status;
mod thread;
mod weights;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use qmesh_models::{numerics, spec::ModelSpec, weights::WeightsError};
use qmesh_net::{Admission, Endpoint, Gate, Identity, JoinRight, KeyFileError, KnownPeers, NetError, Ticket};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use self::{roster::PlannedModel, thread::MeshThread};
use crate::{
    generate::{MeshHandle, SUBMISSIONS_WAITING},
    model::Model,
    plan::Workload,
};

/// What a mesh is made of.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The model that it serves.
    pub model: Arc<Model>,
    /// Where workers dial in.
    pub listen: SocketAddr,
    /// Addresses for the ticket; with none, those of `listen`.
    pub advertise: Vec<String>,
    /// The most positions of one session.
    pub context: usize,
    /// KV positions of all sessions together; at least `context`.
    pub kv_positions: usize,
    /// When workers become a pipeline.
    pub formation: Formation,
    /// Rows of one step: a prompt's chunk.
    pub chunk_rows: usize,
    /// Whether the ticket outlives the process.
    pub ticket: TicketSource,
    /// Whether prompts begin with what earlier ones have left on the stages.
    pub prefix_reuse: PrefixReuse,
    /// Whether tokens are drafted from the text so far.
    pub speculation: Speculation,
}

/// Whether prompts begin with what earlier ones have left on the stages. It changes no bit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PrefixReuse {
    /// Ended sessions leave their beginning behind, as long as nobody needs the room.
    #[default]
    On,
    /// Every prompt is computed whole.
    Off,
}

/// Whether tokens are drafted from the text so far, and verified several at a time. It changes no bit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Speculation {
    /// Where it pays, by the times measured.
    #[default]
    On,
    /// A step, a token.
    Off,
}

/// When workers become a pipeline, and with what cut.
#[derive(Clone, Debug)]
pub struct Formation {
    /// How many it takes.
    pub workers: Workers,
    /// Layers at which to cut, instead of the planner's choice.
    pub cut: Option<Vec<usize>>,
    /// What that choice shall be good for.
    pub workload: Workload,
}

/// How many workers it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Workers {
    /// So many; those who join later are spares.
    Exactly(usize),
    /// So many or more, dealt again when others join.
    AtLeast(usize),
    /// As many as hold the model, dealt again when others join.
    WhenItFits,
}

/// Whether the ticket outlives the process.
#[derive(Clone, Debug)]
pub enum TicketSource {
    /// A key and a secret for this process only.
    Fresh,
    /// Kept in a directory, so that workers find back after a restart.
    Kept {
        /// Where the key and the secret lie, mode 0600.
        directory: PathBuf,
        /// Whether to make earlier tickets worthless.
        rotate: Rotate,
        /// When the ticket stops letting new workers in, in seconds since 1970; `None` leaves it as it was kept.
        expires_unix: Option<u64>,
    },
}

/// Whether to make earlier tickets worthless.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rotate {
    /// Earlier tickets stay good.
    Keep,
    /// A new secret: who has only an old ticket is refused.
    New,
}

/// Why a mesh could not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The endpoint, the key or the secret.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The key's or the secret's file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The model's file.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The system gives no thread.
    #[error("cannot start the mesh's thread: {0}")]
    Thread(#[from] io::Error),
    /// Sizes that contradict each other.
    #[error("{text}")]
    Config {
        /// Which, and what to do.
        text: String,
    },
}

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    handle: MeshHandle,
    ticket: Ticket,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    /// Where it runs, unless on the caller's runtime.
    _thread: Option<MeshThread>,
}

impl Mesh {
    /// Binds the endpoint and starts to let workers in, on a thread of its own. Reads the whole model once, to hash its
    /// tensors.
    ///
    /// # Errors
    /// A port in use, an unreadable key or model, no thread, or sizes that contradict each other.
    pub async fn start(config: MeshConfig) -> Result<Self, MeshError> {
        let thread = MeshThread::spawn()?;
        let starting = async move {
            let (identity, right) = credentials(&config.ticket)?;
            let endpoint = Endpoint::bind(config.listen, &identity, Admission::anyone())?;
            Self::start_on(endpoint, &identity, right, config).await
        };
        let mesh = thread.run(starting).await?;
        Ok(Self { _thread: Some(thread), ..mesh })
    }

    /// Starts on an endpoint that the caller made, and on the runtime it is called in: tests run meshes in memory.
    ///
    /// # Errors
    /// As `start`, but for the endpoint's.
    pub async fn start_on(
        endpoint: Endpoint,
        identity: &Identity,
        right: JoinRight,
        config: MeshConfig,
    ) -> Result<Self, MeshError> {
        check_sizes(&config)?;
        let JoinRight { secret, expires_unix } = right;
        let model = Arc::clone(&config.model);
        let hashing =
            tokio::task::spawn_blocking(move || Ok((model.file.hashes(&model.spec.tensors)?, model.file.id()?)));
        let hashed: Result<_, WeightsError> =
            hashing.await.map_err(|e| MeshError::Config { text: format!("hashing the model failed: {e}") })?;
        let (hashes, id) = hashed?;
        let ticket = Ticket {
            addresses: addresses(&config, endpoint.local_addr()),
            coordinator: identity.peer_id(),
            secret: secret.clone(),
            expires_unix,
        };
        let planned = PlannedModel {
            name: config.model.name.clone(),
            id: id.0,
            // Sessions hold no more: what depends on a model's context depends on this.
            spec: ModelSpec { context: config.context, ..config.model.spec.clone() },
            hashes,
            context: config.context,
            kv_positions: config.kv_positions,
            chunk_rows: config.chunk_rows,
        };
        let (submissions, submitted) = mpsc::channel(SUBMISSIONS_WAITING);
        let (stop, stopped) = oneshot::channel();
        let gate = Gate { secret, expires_unix, known: KnownPeers::default(), numerics: numerics::expected() };
        let task = run::MeshTask::new(endpoint, gate, &config, planned);
        let (status, watched) = watch::channel(Arc::new(task.status()));
        let task = tokio::spawn(task.run(submitted, status, stopped));
        Ok(Self { handle: MeshHandle::new(submissions, watched), ticket, stop: Some(stop), task, _thread: None })
    }

    /// The way in for requests.
    pub fn handle(&self) -> MeshHandle {
        self.handle.clone()
    }

    /// What a worker needs to join.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The command that a worker's owner pastes.
    pub fn join_command(&self) -> String {
        format!("shard-worker join {}", self.ticket)
    }

    /// Finishes what runs, or fails it after a while, says goodbye to the workers and closes the endpoint.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // The task may be over already; then there is nothing to stop.
            let _gone = stop.send(());
        }
        if tokio::time::timeout(STOPPING, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

fn check_sizes(config: &MeshConfig) -> Result<(), MeshError> {
    let (context, positions) = (config.context, config.kv_positions);
    let text = if context == 0 || config.chunk_rows == 0 {
        "the context and the chunk must hold at least one position".to_owned()
    } else if positions < context {
        format!("{positions} KV positions cannot hold a context of {context}: lower --ctx-size or raise --parallel")
    } else {
        return Ok(());
    };
    Err(MeshError::Config { text })
}

fn credentials(source: &TicketSource) -> Result<(Identity, JoinRight), KeyFileError> {
    match source {
        TicketSource::Fresh => Ok((Identity::ephemeral(), JoinRight::random())),
        TicketSource::Kept { directory, rotate, expires_unix } => {
            let identity = Identity::load_or_create(directory.join("coordinator.key"))?;
            let path = directory.join("join.secret");
            let right = match (rotate, *expires_unix) {
                (Rotate::New, end) => JoinRight::rotate(path, end)?,
                (Rotate::Keep, Some(end)) => JoinRight::limit(path, end)?,
                (Rotate::Keep, None) => JoinRight::load_or_create(path)?,
            };
            Ok((identity, right))
        }
    }
}

/// What to write into the ticket: an unspecified address is replaced by the one that leads out of this machine.
fn addresses(config: &MeshConfig, bound: SocketAddr) -> Vec<String> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let outward = outward_address(bound).map(|ip| SocketAddr::new(ip, bound.port()).to_string());
    let local = SocketAddr::new(
        if bound.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() },
        bound.port(),
    );
    outward.into_iter().chain([local.to_string()]).collect()
}

/// The address that packets to the world leave from; connecting a UDP socket sends nothing.
fn outward_address(bound: SocketAddr) -> Option<std::net::IpAddr> {
    let (from, to) = if bound.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let socket = std::net::UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

/// How long `stop` waits for running generations and for goodbyes.
const STOPPING: Duration = Duration::from_secs(15);
