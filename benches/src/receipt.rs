//! Receipts: what a figure needs beside it to be believed, and measured again.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command as Process,
    time::SystemTime,
};

use anyhow::{Context, Result};
use qmesh_models::chat::date::strftime;
use serde_json::{Value, json};

use crate::{
    commands::Measurement,
    machine,
    model::{BenchModel, hash},
    peer::Peer,
    report::Report,
};

/// The machine's load average (one minute) around a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadAverage {
    /// When it began.
    pub before: f64,
    /// When it had ended.
    pub after: f64,
}

/// Load that a calm machine has by itself.
const CALM: f64 = 0.5;

impl LoadAverage {
    /// The sentence for the report of a run with at most `threads` threads, with a warning where others were at work.
    pub fn note(self, threads: usize) -> String {
        let Self { before, after } = self;
        let disturbed = before > CALM || after > threads as f64 + CALM;
        let warning = if disturbed { "; WARNING: other processes were at work, measure again" } else { "" };
        format!("load average {before:.2} before, {after:.2} after{warning}")
    }
}

/// Writes the receipt of a run of `command` into `folder`, which is made if need be.
///
/// # Errors
/// Names the file that cannot be read or written.
pub fn write(folder: &Path, command: &Measurement, report: &Report, load: LoadAverage) -> Result<PathBuf> {
    let date = strftime("%Y-%m-%dT%H:%M:%SZ", SystemTime::now()).expect("the format is a good one");
    let receipt = json!({
        "date": date,
        "command": std::env::args().collect::<Vec<_>>(),
        "commit": commit(),
        "version": env!("CARGO_PKG_VERSION"),
        "machine": machine::describe(),
        "pinned_to": command.options().pin,
        "load_average": { "before": load.before, "after": load.after },
        "models": command.models().iter().map(|path| model(path)).collect::<Result<Vec<_>>>()?,
        "peers": report.peers.iter().map(peer).collect::<Result<Vec<_>>>()?,
        "report": report.json(),
    });
    fs::create_dir_all(folder).with_context(|| format!("--receipt {}", folder.display()))?;
    let path = folder.join(format!("{}-{}.json", command.name(), date.replace(':', "")));
    let mut file = File::create_new(&path).with_context(|| format!("--receipt: {}", path.display()))?;
    writeln!(file, "{receipt:#}").with_context(|| format!("--receipt: {}", path.display()))?;
    Ok(path)
}

fn model(path: &Path) -> Result<Value> {
    let model = BenchModel::open(path)?;
    let (bytes, blake3) = model.hashes()?;
    Ok(json!({ "name": model.name, "bytes": bytes, "blake3": blake3 }))
}

fn peer(peer: &Peer) -> Result<Value> {
    let rpc_server = peer.rpc_server().map(|program| hash(&program)).transpose()?;
    let blake3 = hash(&peer.program)?;
    Ok(json!({ "label": peer.label, "build": peer.build, "blake3": blake3, "rpc_server_blake3": rpc_server }))
}

/// The commit of the checkout we are in, with `-dirty` where it was changed; null outside of one.
fn commit() -> Option<String> {
    let git =
        Process::new("git").args(["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).output().ok()?;
    git.status.success().then(|| String::from_utf8_lossy(&git.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_said_so() {
        let note = |before, after| LoadAverage { before, after }.note(2);
        assert_eq!(note(0.2, 2.1), "load average 0.20 before, 2.10 after");
        assert!(note(0.6, 2.0).contains("WARNING") && note(0.0, 2.6).contains("WARNING"));
    }
}
