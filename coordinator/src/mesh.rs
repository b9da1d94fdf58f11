//! The mesh: who is connected, who holds which layers, and the pipeline they form.
//!
//! Two rooms of state machines, without IO or clock: `formation` decides who is in and which pipelines are made, and
//! `scheduling` what runs through them. The `conductor` plays both together, with the `probe` that proves a new
//! pipeline, and turns what happens into actions; `run` is the task that carries these out. Others hold a
//! [`MeshHandle`]: requests go in by it, [`status`] and [`events`] come out.

mod conductor;
pub mod config;
mod draft_process;
mod entry;
mod error;
pub mod events;
mod formation;
pub(crate) mod handle;
pub(crate) mod lobby;
pub mod members;
mod observer;
pub mod owner;
mod probe;
mod run;
mod scheduling;
mod seekers;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod status;
mod thread;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use qmesh_discovery::told_addresses;
use qmesh_models::{numerics, spec::ModelSpec, weights::WeightsError};
use qmesh_net::{Admission, Endpoint, Gate, Identity, JoinRight, KeyFileError, KnownPeers, Ticket};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

pub(crate) use self::formation::excerpt;
pub use self::{
    config::{Formation, Measuring, MeshConfig, PrefixReuse, Relaying, Rotate, Speculation, TicketSource, Workers},
    error::MeshError,
    handle::MeshHandle,
    scheduling::DRAFTS_MOST,
};
use self::{
    draft_process::DraftProcess, formation::PlannedModel, handle::CALLS_WAITING, members::Members, run::MeshTask,
    thread::MeshThread,
};

/// A running mesh.
#[derive(Debug)]
pub struct Mesh {
    handle: MeshHandle,
    ticket: Ticket,
    address: SocketAddr,
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
            let members = match &config.ticket {
                TicketSource::Fresh => Members::for_now(),
                TicketSource::Kept { directory, .. } => Members::open(directory)?,
            };
            let endpoint = Endpoint::bind(config.listen, &identity, Admission::anyone())?;
            Self::begin(endpoint, &identity, right, members, config).await
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
        Self::begin(endpoint, identity, right, Members::for_now(), config).await
    }

    async fn begin(
        endpoint: Endpoint,
        identity: &Identity,
        right: JoinRight,
        members: Members,
        config: MeshConfig,
    ) -> Result<Self, MeshError> {
        config.check()?;
        let address = endpoint.local_addr();
        let JoinRight { secret, expires_unix } = right;
        let model = Arc::clone(&config.model);
        let hashing =
            tokio::task::spawn_blocking(move || Ok((model.file.hashes(&model.spec.tensors)?, model.file.id()?)));
        let hashed: Result<_, WeightsError> = hashing.await.map_err(MeshError::Hashing)?;
        let (hashes, id) = hashed?;
        let ticket = Ticket {
            addresses: if config.advertise.is_empty() { told_addresses(address) } else { config.advertise.clone() },
            rendezvous: config.rendezvous.clone(),
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
        let (calls, called) = mpsc::channel(CALLS_WAITING);
        let (stop, stopped) = oneshot::channel();
        let (known, strangers) = (KnownPeers::default(), config.strangers);
        let gate = Gate { secret, expires_unix, known, strangers, numerics: numerics::expected() };
        let drafter = config.drafter.as_ref();
        let drafting = drafter.map(|d| draft_process::command(d, config.context, config.kv_positions));
        let drafting = drafting.map(DraftProcess::spawn).transpose()?;
        let calling = (!ticket.rendezvous.is_empty())
            .then(|| endpoint.keep_calling(ticket.rendezvous.clone(), ticket.rendezvous_tag()));
        let task = MeshTask::new(endpoint, gate, members.clone(), &config, planned, (drafting, calling));
        let handle = MeshHandle::new(calls, task.watch_status(), task.events(), members);
        let task = tokio::spawn(task.run(called, stopped));
        Ok(Self { handle, ticket, address, stop: Some(stop), task, _thread: None })
    }

    /// The way in for requests.
    pub fn handle(&self) -> MeshHandle {
        self.handle.clone()
    }

    /// What a worker needs to join.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Where workers dial in, as it is bound.
    pub fn listens_at(&self) -> SocketAddr {
        self.address
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

/// How long `stop` waits for running generations and for goodbyes.
const STOPPING: Duration = Duration::from_secs(15);
