//! What outlives a stay in a mesh: the compute thread with its shards, those that are being loaded, and what is known of
//! them.

use std::{collections::VecDeque, io};

use qmesh_models::footprint::FRAMES_HELD;
use tokio::sync::mpsc;

use super::{
    compute::{Command, ComputeThread, Done},
    console::Console,
    state::{SHARDS_MOST, WorkerState},
    tensors::{HeldUses, Shelf},
};

/// What outlives a stay.
pub(super) struct Lasting {
    pub(super) state: WorkerState,
    pub(super) console: Console,
    /// What other workers may have from this one.
    pub(super) shelf: Shelf,
    /// What its shards use of the cache.
    pub(super) uses: HeldUses,
    thread: ComputeThread,
    /// Commands that the thread has no place for yet, in order.
    backlog: VecDeque<Command>,
    /// What is said where shards are loaded.
    loads: mpsc::Receiver<Done>,
    /// What says it.
    loads_sender: mpsc::Sender<Done>,
}

impl Lasting {
    /// A compute thread without a shard.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(console: Console) -> io::Result<Self> {
        let thread = ComputeThread::spawn(2 * FRAMES_HELD)?;
        let (loads_sender, loads) = mpsc::channel(2 * SHARDS_MOST);
        let (state, shelf, uses) = (WorkerState::default(), Shelf::default(), HeldUses::default());
        Ok(Self { state, console, shelf, uses, thread, backlog: VecDeque::new(), loads, loads_sender })
    }

    /// Puts a command behind those that wait.
    pub(super) fn command(&mut self, command: Command) {
        self.backlog.push_back(command);
    }

    /// Where those who load shards say how it goes.
    pub(super) fn loads(&self) -> mpsc::Sender<Done> {
        self.loads_sender.clone()
    }

    /// What is said next where shards are computed and loaded. Meanwhile hands the compute thread the commands that wait,
    /// as it has room; and another one takes the place of a thread that ends. Cancel-safe.
    ///
    /// # Errors
    /// When the system gives no other thread.
    pub(super) async fn next(&mut self) -> io::Result<Done> {
        loop {
            let done = tokio::select! {
                biased;
                done = self.thread.done.recv() => done,
                done = self.loads.recv() => done,
                Ok(permit) = self.thread.commands.reserve(), if !self.backlog.is_empty() => {
                    if let Some(command) = self.backlog.pop_front() {
                        permit.send(command);
                    }
                    continue;
                }
            };
            return match done {
                Some(done) => Ok(done),
                // The thread has panicked, and said so.
                None => {
                    self.thread = ComputeThread::spawn(2 * FRAMES_HELD)?;
                    self.backlog.clear();
                    Ok(Done::Ended)
                }
            };
        }
    }

    /// Commands that wait, here or in the state machine.
    pub(super) fn waiting(&self) -> usize {
        self.backlog.len() + self.state.queued()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{console::Audience, turn::Turn};

    #[tokio::test]
    async fn another_compute_thread_takes_the_place_of_one_that_ends() {
        let mut lasting = Lasting::new(Console::new(Audience::Nobody)).unwrap();
        lasting.command(Command::Unload { turn: Turn(1) });
        // What a thread that panics leaves behind.
        lasting.thread.done = mpsc::channel(1).1;
        assert!(matches!(lasting.next().await.unwrap(), Done::Ended));
        assert_eq!(lasting.waiting(), 0, "what it was to do went with it");
        lasting.command(Command::Unload { turn: Turn(2) });
        assert!(matches!(lasting.next().await.unwrap(), Done::Unloaded { turn: Turn(2) }));
    }
}
