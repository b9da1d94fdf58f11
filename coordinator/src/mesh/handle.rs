//! What others hold of a running mesh: requests go in, status and events come out.

use std::sync::Arc;

use qmesh_discovery::DhtSeeker;
use qmesh_net::PeerId;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot, watch,
};

pub(crate) use super::formation::WorkerId;
use super::{
    events::{EventReader, EventSource},
    lobby::Newcomer,
    members::Members,
    owner::OwnerError,
    status::{MeshStatus, SequenceStatus},
};
use crate::generate::{GenerateError, GenerateEvent, GenerateRequest, Generation};

/// The way in to a running mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    calls: mpsc::Sender<Call>,
    status: watch::Receiver<Arc<MeshStatus>>,
    events: EventSource,
    members: Members,
}

/// What is asked of the mesh.
#[derive(Debug)]
pub(crate) enum Call {
    /// Take a request in.
    Submit(Submission),
    /// End one that runs or waits, by its number; the answer is whether there was one.
    Cancel { request: u64, found: oneshot::Sender<bool> },
    /// Send to a worker that asks for it, so that its packets get in.
    Meet(DhtSeeker),
    /// Say what runs and what waits.
    Sequences(oneshot::Sender<Vec<SequenceStatus>>),
    /// Say who is there, and who asks to be.
    There(oneshot::Sender<There>),
    /// Send away a worker that asks; the answer is whether it did.
    Refuse { worker: WorkerId, refused: oneshot::Sender<bool> },
    /// Go by the book as it is now.
    Heed(oneshot::Sender<()>),
}

/// Who is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct There {
    pub(crate) asking: Vec<(WorkerId, Newcomer)>,
    /// Names in the mesh, and keys.
    pub(crate) present: Vec<(String, PeerId)>,
}

/// A request on its way to the mesh.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: GenerateRequest,
    pub(crate) events: mpsc::Sender<GenerateEvent>,
}

impl MeshHandle {
    pub(crate) fn new(
        calls: mpsc::Sender<Call>,
        status: watch::Receiver<Arc<MeshStatus>>,
        events: EventSource,
        members: Members,
    ) -> Self {
        Self { calls, status, events, members }
    }

    /// Hands a request in. What is wrong with it comes as the first event, `Failed`.
    ///
    /// # Errors
    /// `QueueFull` when too many requests stand before the mesh, `ShuttingDown` when it is gone.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (events, receiver) = mpsc::channel(EVENTS_BUFFERED);
        self.calls.try_send(Call::Submit(Submission { request, events })).map_err(|error| match error {
            TrySendError::Full(_) => GenerateError::QueueFull { waiting: CALLS_WAITING },
            TrySendError::Closed(_) => GenerateError::ShuttingDown,
        })?;
        Ok(Generation::new(receiver))
    }

    /// Ends a request by the number that events give it; whoever asked hears [`GenerateError::Cancelled`]. Whether there was
    /// such a request.
    pub async fn cancel(&self, request: u64) -> bool {
        let (found, answer) = oneshot::channel();
        let asked = self.calls.send(Call::Cancel { request, found }).await.is_ok();
        asked && answer.await.unwrap_or(false)
    }

    /// Has this coordinator send to a worker that asks for it, so that its packets get in.
    pub fn meet(&self, seeker: DhtSeeker) {
        // It asks again if it is not heard.
        let _heard = self.calls.try_send(Call::Meet(seeker));
    }

    /// What runs and what waits, in the order in which it came; nothing once the mesh is gone.
    pub async fn sequences(&self) -> Option<Vec<SequenceStatus>> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Sequences(answer)).await.ok()?;
        answered.await.ok()
    }

    /// The book of keys.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Who is there, and who asks to be.
    pub(super) async fn there(&self) -> Result<There, OwnerError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Call::There(answer)).await?;
        answered.await.map_err(|_| OwnerError::Over)
    }

    /// Puts a call before the mesh.
    pub(super) async fn ask(&self, call: Call) -> Result<(), OwnerError> {
        self.calls.send(call).await.map_err(|_| OwnerError::Over)
    }

    /// What the mesh says of itself, now.
    pub fn status(&self) -> Arc<MeshStatus> {
        self.status.borrow().clone()
    }

    /// A view that wakes its owner when the status has changed, and never else.
    pub fn watch(&self) -> watch::Receiver<Arc<MeshStatus>> {
        self.status.clone()
    }

    /// What happens in the mesh from now on, as it happens.
    pub fn events(&self) -> EventReader {
        self.events.subscribe()
    }
}

/// Events of one generation that may wait for a slow reader; a reader that stays behind is cancelled.
const EVENTS_BUFFERED: usize = 1024;
/// Calls that may stand before the mesh.
pub(crate) const CALLS_WAITING: usize = 256;
