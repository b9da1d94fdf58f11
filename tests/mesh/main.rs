//! Meshes of real processes: the two terminals of the README, what goes wrong there, and workers that die.

mod changes;
mod clients;
mod discovery;
mod doors;
mod drafts;
mod errors;
mod experts;
mod footprint;
mod hostile;
mod memory;
#[cfg(target_os = "linux")]
mod networks;
mod open;
mod page;
mod pulled;
mod survival;
mod terminals;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use qmesh_tests::{
    default_model, http,
    process::{self, Running},
    stand_in,
};
use serde_json::Value;
use tempfile::TempDir;

/// Whether tests run at full length: `QMESH_SOAK=1`.
fn soak() -> bool {
    std::env::var_os("QMESH_SOAK").is_some()
}

/// A coordinator that serves the default model, and a folder for everything it and its workers keep.
struct Serving {
    /// Killed when the test ends.
    coordinator: Running,
    folder: TempDir,
    /// Of the API.
    url: String,
    ticket: String,
}

impl Serving {
    /// `coordinator serve` of the default model on free ports, with more arguments.
    fn start(more: &[&str]) -> Self {
        Self::start_with(&default_model(), more)
    }

    /// The same with another model.
    fn start_with(model: &str, more: &[&str]) -> Self {
        Self::start_for(model, 1024, more)
    }

    /// The same with another context.
    ///
    /// Layers are dealt by threads alone: what workers measure of each other's noise here would make another plan each time.
    fn start_for(model: &str, context: usize, more: &[&str]) -> Self {
        Self::start_measuring("1", model, context, more)
    }

    /// The same, where `no_measure` may be 0: workers find out how fast they are.
    fn start_measuring(no_measure: &str, model: &str, context: usize, more: &[&str]) -> Self {
        Self::start_by(process::command("coordinator"), no_measure, model, context, more)
    }

    /// The same, where `command` starts the program.
    fn start_by(mut command: Command, no_measure: &str, model: &str, context: usize, more: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        command.args(["serve", model, "--port", "0"]).args(more);
        if !more.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(["--ctx-size", &context.to_string()]);
        command.env("XDG_DATA_HOME", folder.path()).env("QMESH_NO_MEASURE", no_measure);
        let mut coordinator = Running::start(command);
        let ticket = coordinator.wait_for(PULLING, "the join line", |line| {
            line.trim().strip_prefix("shard-worker join ").map(|rest| first_word(rest).to_owned())
        });
        let url = coordinator.wait_for(STARTING, "the API's address", api_address);
        Self { coordinator, folder, url, ticket }
    }

    /// A worker that joins, with a cache of its own.
    fn join(&self, name: &str, more: &[&str]) -> Running {
        worker(&self.ticket, name, self.folder.path(), more)
    }

    /// Waits until `/ready` says so, with this many stages.
    fn wait_ready(&self, stages: usize) {
        let until = std::time::Instant::now() + STARTING;
        loop {
            let status = http::get(&format!("{}/api/status", self.url)).body;
            let formed = status["stages"].as_array().map_or(0, Vec::len) == stages;
            if formed && http::get(&format!("{}/ready", self.url)).status == 200 {
                return;
            }
            assert!(std::time::Instant::now() < until, "not ready with {stages} stages: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// The pipeline's stages, as the status has them.
    fn stages(&self) -> Vec<Value> {
        let status = http::get(&self.path("/api/status")).body;
        status["stages"].as_array().cloned().unwrap_or_default()
    }

    /// What a worker stored: the name and the bytes of each blob.
    fn blobs(&self, worker: &str) -> BTreeMap<String, u64> {
        let folders = fs::read_dir(self.folder.path().join(worker).join("blobs")).into_iter().flatten().flatten();
        let files = folders.flat_map(|f| fs::read_dir(f.path()).into_iter().flatten().flatten());
        files.map(|f| (f.file_name().to_string_lossy().into_owned(), f.metadata().unwrap().len())).collect()
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_default()
}

fn worker(ticket: &str, name: &str, folder: &Path, more: &[&str]) -> Running {
    worker_by(Command::new(process::binaries().join("shard-worker")), ticket, name, folder, more)
}

/// The same, where `command` starts the program.
fn worker_by(mut command: Command, ticket: &str, name: &str, folder: &Path, more: &[&str]) -> Running {
    command.args(["join", ticket, "--name", name]).args(more);
    if !more.contains(&"--threads") {
        command.args(["--threads", "1"]);
    }
    command.env("XDG_DATA_HOME", folder).env("QMESH_CACHE", folder.join(name)).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Running::start(command)
}

/// The ticket, without the flags after it.
fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

/// `http://…` on a line of the coordinator's, without the path.
fn api_address(line: &str) -> Option<String> {
    let start = line.find("http://")?;
    let rest = &line[start + "http://".len()..];
    let host: String = rest.chars().take_while(|c| c.is_ascii_digit() || ['.', ':'].contains(c)).collect();
    Some(format!("http://{}", host.trim_end_matches([':', '.'])))
}

/// The name under which the default model is served.
const MODEL: &str = stand_in::NAME;
/// The real default model knows the answer: Paris.
const QUESTION: &str = "What is the capital of France, and what is it known for?";
/// The first use downloads the model.
const PULLING: Duration = Duration::from_secs(300);
const STARTING: Duration = Duration::from_secs(60);
