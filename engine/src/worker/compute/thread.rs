//! The compute thread: it owns every shard at work, takes one command after the other, and says what became of each.

use std::{io, thread, time::Instant};

use tokio::sync::mpsc;

use super::{
    command::{Command, Done},
    shards::Shards,
};

/// The near ends of the compute thread's channels.
pub(crate) struct ComputeThread {
    /// The thread lives as long as this sender.
    pub(crate) commands: mpsc::Sender<Command>,
    /// What became of each command; it ends when the thread does.
    pub(crate) done: mpsc::Receiver<Done>,
}

impl ComputeThread {
    /// Starts the thread, without a shard. So many commands may wait for it, and so many answers of it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(depth: usize) -> io::Result<Self> {
        let ((sender, mut commands), (done, answers)) = (mpsc::channel(depth), mpsc::channel(depth));
        thread::Builder::new().name("qmesh-compute".into()).spawn(move || {
            let mut shards = Shards::default();
            loop {
                let since = Instant::now();
                let Some(command) = commands.blocking_recv() else { return };
                shards.waited(since.elapsed());
                let answer = shards.handle(command, &mut Instant::now);
                if answer.is_some_and(|answer| done.blocking_send(answer).is_err()) {
                    return;
                }
            }
        })?;
        Ok(Self { commands: sender, done: answers })
    }
}
