//! What others hold of a running mesh: requests go in, status and events come out.

use std::sync::Arc;

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};

use super::{
    events::{EventReader, EventSource},
    status::MeshStatus,
};
use crate::generate::{GenerateError, GenerateEvent, GenerateRequest, Generation};

/// The way in to a running mesh. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MeshHandle {
    submissions: mpsc::Sender<Submission>,
    status: watch::Receiver<Arc<MeshStatus>>,
    events: EventSource,
}

/// A request on its way to the mesh.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: GenerateRequest,
    pub(crate) events: mpsc::Sender<GenerateEvent>,
}

impl MeshHandle {
    pub(crate) fn new(
        submissions: mpsc::Sender<Submission>,
        status: watch::Receiver<Arc<MeshStatus>>,
        events: EventSource,
    ) -> Self {
        Self { submissions, status, events }
    }

    /// Hands a request in. What is wrong with it comes as the first event, `Failed`.
    ///
    /// # Errors
    /// `QueueFull` when too many requests stand before the mesh, `ShuttingDown` when it is gone.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (events, receiver) = mpsc::channel(EVENTS_BUFFERED);
        self.submissions.try_send(Submission { request, events }).map_err(|error| match error {
            TrySendError::Full(_) => GenerateError::QueueFull { waiting: SUBMISSIONS_WAITING },
            TrySendError::Closed(_) => GenerateError::ShuttingDown,
        })?;
        Ok(Generation::new(receiver))
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
/// Requests that may stand before the mesh.
pub(crate) const SUBMISSIONS_WAITING: usize = 256;
