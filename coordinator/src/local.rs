//! Workers on this machine: `shard-worker` processes that this one starts, and that never outlive it.
//!
//! A child holds the other end of a pipe as its standard input and leaves when that ends, so not even `kill -9` of the
//! coordinator leaves one behind.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use qmesh_models::{directories::Directories, spec::ModelSpec};
use qmesh_net::Ticket;
use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStderr, Command},
};

use crate::{
    drafter::DraftRoom,
    mesh,
    plan::{Speed, SpeedPoint},
};

/// Why a worker cannot be started on this machine.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}: build it with `cargo build --release`: {error}", program.display())]
pub struct CannotStart {
    /// The worker's program.
    pub program: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

/// Workers that this process started.
#[derive(Debug)]
pub struct LocalWorkers {
    children: Vec<Child>,
}

impl LocalWorkers {
    /// Starts `count` workers with `threads_each` compute threads, which join by `ticket` and read their tensors from
    /// the model in `model_folder`: one copy of it serves everybody on this machine.
    ///
    /// # Errors
    /// When `shard-worker` is neither beside this program nor on the path, or cannot be started.
    pub fn spawn(ticket: &Ticket, count: usize, threads_each: usize, model_folder: &Path) -> Result<Self, CannotStart> {
        let mut children = Vec::with_capacity(count);
        for number in 1..=count {
            let command = worker_command(ticket, &format!("local-{number}"), threads_each, model_folder);
            let mut child = start(command, Stdio::null())?;
            if let Some(stderr) = child.stderr.take() {
                tokio::spawn(log_lines(format!("local-{number}"), stderr));
            }
            children.push(child);
        }
        Ok(Self { children })
    }

    /// The first of them that has ended by itself, with its exit status.
    pub fn ended(&mut self) -> Option<(usize, std::process::ExitStatus)> {
        let status = |child: &mut Child| child.try_wait().ok().flatten();
        self.children.iter_mut().enumerate().find_map(|(i, c)| status(c).map(|s| (i + 1, s)))
    }

    /// Waits a little for them to leave, then ends them.
    pub async fn stop(mut self) {
        for child in &mut self.children {
            // Closing the pipe is the word to leave.
            drop(child.stdin.take());
            if tokio::time::timeout(LEAVING, child.wait()).await.is_err() {
                // It may have left in this moment; then there is nothing to kill.
                let _gone = child.kill().await;
            }
        }
    }
}

/// The command that starts a worker which leaves with its parent, and reads its tensors from the model in
/// `model_folder`: `shard-worker` beside this program, or else on the path.
pub fn worker_command(ticket: &Ticket, name: &str, threads: usize, model_folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(worker_program());
    // In the environment, which others on this machine cannot read as they can a command line.
    command.arg("join").env("QMESH_TICKET", ticket.to_string());
    command.args(["--once", "--exit-with-parent", "--name", name]);
    command.args(["--threads", &threads.to_string()]).arg("--model-dir").arg(model_folder);
    // What is set for this process, as `serve --listen`, is not meant for a worker.
    for variable in ["QMESH_LISTEN", "QMESH_MEMORY", "QMESH_MODEL_DIR"] {
        command.env_remove(variable);
    }
    command
}

/// The command that starts a process which drafts with a model, and leaves when its standard input ends.
pub(crate) fn draft_command(model: &Path, threads: usize, room: DraftRoom) -> std::process::Command {
    let DraftRoom { context, kv_positions } = room;
    let mut command = std::process::Command::new(worker_program());
    command.arg("draft").arg("--model").arg(model).args(["--threads", &threads.to_string()]);
    command.args(["--context", &context.to_string(), "--kv-positions", &kv_positions.to_string()]);
    command
}

/// How fast this machine computes a model with so many threads, as a `shard-worker` of its own finds out. Blocks, for about a
/// second.
///
/// # Errors
/// There is no such program, or it says why it cannot.
pub fn measure(spec: &ModelSpec, threads: u32) -> Result<Speed, String> {
    let mut command = std::process::Command::new(worker_program());
    command.args(["measure", "--threads", &threads.to_string()]);
    if let Ok(directories) = Directories::from_env() {
        command.arg("--cache").arg(directories.cache());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        format!("cannot start {}: build it with `cargo build --release`: {error}", command.get_program().display())
    })?;
    let excerpt = serde_json::to_vec(&mesh::excerpt(spec)).map_err(|error| error.to_string())?;
    // Where it has ended already, its own words say more than the broken pipe.
    let _written = child.stdin.take().map(|mut stdin| stdin.write_all(&excerpt));
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let found: Found = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let speed = Speed::measured(found.steps).ok_or("what shard-worker measured makes no sense")?;
    Ok(speed.with_disk(found.disk_bytes_per_s).with_attention(found.attention_ps_per_byte))
}

/// What `shard-worker measure` prints.
#[derive(Deserialize)]
struct Found {
    steps: Vec<SpeedPoint>,
    attention_ps_per_byte: Option<f64>,
    disk_bytes_per_s: Option<f64>,
}

/// Starts a process that is killed when its handle is dropped, with pipes as standard input and standard error.
///
/// # Errors
/// There is no such program, or the system does not start it.
pub(crate) fn start(command: std::process::Command, stdout: Stdio) -> Result<Child, CannotStart> {
    let program = PathBuf::from(command.get_program());
    Command::from(command)
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C in the terminal is for the coordinator, which drains and then says goodbye.
        .process_group(0)
        .spawn()
        .map_err(|error| CannotStart { program, error })
}

/// Logs what a process says on standard error, until it ends; its last line.
pub(crate) async fn log_lines(who: String, stderr: ChildStderr) -> Option<String> {
    let mut lines = BufReader::new(stderr).lines();
    let mut last = None;
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::info!(target: "qmesh::local", "{who}: {line}");
        last = Some(line);
    }
    last
}

/// `shard-worker` beside this program, as a build leaves it; else whichever is on the path.
fn worker_program() -> PathBuf {
    let mut name = OsString::from("shard-worker");
    name.push(std::env::consts::EXE_SUFFIX);
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name(&name));
    beside.filter(|p| p.is_file()).unwrap_or_else(|| PathBuf::from(name))
}

/// A worker leaves within a step; this is many of them.
const LEAVING: Duration = Duration::from_secs(5);
