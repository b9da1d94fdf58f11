//! The process beside the coordinator in which a small model drafts: orders go in by a pipe, answers come out of another.

use std::{process::Stdio, time::Duration};

use qmesh_net::{DraftAnswer, DraftOrder, Piped, body_bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter},
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
    sync::mpsc,
    time::timeout,
};

use crate::local::{self, CannotStart};

/// A model that drafts in a process of its own, which ends with this.
#[derive(Debug)]
pub(crate) struct DraftProcess {
    orders: mpsc::Sender<DraftOrder>,
    answers: mpsc::Receiver<DraftAnswer>,
    child: Child,
    /// What it said last on standard error.
    last_words: mpsc::Receiver<String>,
}

/// What comes of the process.
#[derive(Debug)]
pub(crate) enum DraftNews {
    /// It says something.
    Answer(DraftAnswer),
    /// It has ended, and why.
    Ended(String),
}

impl DraftProcess {
    /// Starts it. That its model is loaded is its first answer.
    ///
    /// # Errors
    /// There is no `shard-worker`, or the system does not start it.
    pub(crate) fn spawn(command: std::process::Command) -> Result<Self, CannotStart> {
        let mut child = local::start(command, Stdio::piped())?;
        let (orders, ordered) = mpsc::channel(ORDERS_WAITING);
        let (answered, answers) = mpsc::channel(ORDERS_WAITING);
        let (said, last_words) = mpsc::channel(1);
        child.stdin.take().map(|stdin| tokio::spawn(write_orders(ordered, stdin)));
        child.stdout.take().map(|stdout| tokio::spawn(read_answers(stdout, answered)));
        child.stderr.take().map(|stderr| tokio::spawn(last_words_of(stderr, said)));
        Ok(Self { orders, answers, child, last_words })
    }

    /// Hands an order in. `false` where the process takes none any more.
    pub(crate) fn order(&self, order: DraftOrder) -> bool {
        self.orders.try_send(order).is_ok()
    }

    /// What comes next.
    pub(crate) async fn news(&mut self) -> DraftNews {
        if let Some(answer) = self.answers.recv().await {
            return DraftNews::Answer(answer);
        }
        // Where it goes on and makes no sense, it is ended.
        let ended = timeout(ENDING, self.child.wait()).await;
        let status = match ended {
            Ok(status) => status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            Err(_) => "it says what makes no sense".to_owned(),
        };
        if let Err(error) = self.child.start_kill() {
            tracing::debug!(%error, "it has ended by itself");
        }
        let said = self.last_words.recv().await;
        DraftNews::Ended(said.map_or_else(|| status.clone(), |said| format!("{status}: {said}")))
    }
}

/// The command of a drafting process.
pub(crate) fn command(drafter: &crate::drafter::Drafter, context: usize, kv_positions: usize) -> std::process::Command {
    let room = drafter.room(context, kv_positions);
    local::draft_command(&drafter.model.path, drafter.threads, room)
}

async fn write_orders(mut ordered: mpsc::Receiver<DraftOrder>, stdin: ChildStdin) {
    let mut stdin = BufWriter::new(stdin);
    while let Some(order) = ordered.recv().await {
        let written = match order.to_pipe() {
            Ok(bytes) => stdin.write_all(&bytes).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        // More orders may be there already.
        let flushed = if ordered.is_empty() { stdin.flush().await } else { Ok(()) };
        if written.and(flushed).is_err() {
            // Its end is noticed where its answers are read.
            return;
        }
    }
}

async fn read_answers(stdout: ChildStdout, answered: mpsc::Sender<DraftAnswer>) {
    let mut stdout = BufReader::new(stdout);
    while let Some(answer) = next_answer(&mut stdout).await {
        if answered.send(answer).await.is_err() {
            return;
        }
    }
}

async fn next_answer(stdout: &mut BufReader<ChildStdout>) -> Option<DraftAnswer> {
    let mut length = [0; 4];
    stdout.read_exact(&mut length).await.ok()?;
    let mut body = vec![0; body_bytes(length).ok()?];
    stdout.read_exact(&mut body).await.ok()?;
    DraftAnswer::from_body(&body).inspect_err(|error| tracing::error!(%error, "what was drafted")).ok()
}

async fn last_words_of(stderr: ChildStderr, said: mpsc::Sender<String>) {
    if let Some(line) = local::log_lines("the draft model".to_owned(), stderr).await {
        // Whoever wanted to know may be gone.
        let _heard = said.send(line).await;
    }
}

/// A process whose output has ended ends itself within this time.
const ENDING: Duration = Duration::from_secs(1);
/// Orders, and answers, that wait: some for each session that there may be.
const ORDERS_WAITING: usize = 1024;
