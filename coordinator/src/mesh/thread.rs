//! The thread of a mesh. It does nothing else, so that other work, such as cutting a long text into tokens, delays no
//! step.

use std::{convert::Infallible, io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use super::error::MeshError;

/// A runtime on one thread, which ends with this.
#[derive(Debug)]
pub(super) struct MeshThread {
    handle: Handle,
    /// When it is dropped, the runtime ends with all that runs on it.
    _lease: oneshot::Sender<Infallible>,
}

impl MeshThread {
    /// Starts it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn spawn() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (lease, ended) = oneshot::channel();
        thread::Builder::new().name("qmesh-mesh".into()).spawn(move || {
            // Nothing is ever sent: this returns when the other end is dropped.
            let _end = runtime.block_on(ended);
            // A read of a large file must not hold the end up.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _lease: lease })
    }

    /// Runs `work` on it; what `work` spawns stays there.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, MeshError>> + Send + 'static,
    ) -> Result<T, MeshError> {
        let ended = self.handle.spawn(work).await;
        ended.map_err(MeshError::Starting)?
    }
}
