//! What the programs say on standard error while they run: lines for people, or a JSON object a line for a log.
//!
//! Two kinds of things are said. *Notes* tell the user what happens: a worker joined, why a program ends. *Records* come from
//! the libraries, by `tracing`, and are for whoever looks for a fault: warnings, or what `RUST_LOG` asks for. As text both look
//! as they always do in a terminal; as JSON a note is a record too, of the level `INFO` or `ERROR` and the target `qmesh`.

pub mod service;

use std::{
    env,
    io::{self, IsTerminal, Write},
    sync::OnceLock,
};

use clap::ValueEnum;
use qmesh_models::terminal::escaped;
use tracing_subscriber::EnvFilter;

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people, in colour on a terminal unless `NO_COLOR` is set.
    #[default]
    Text,
    /// A JSON object a line: `timestamp`, `level`, `fields.message`, `target`.
    Json,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Lets records and notes of this process look so from now on. The first call decides.
pub fn begin(format: LogFormat) {
    if FORMAT.set(format).is_err() {
        return;
    }
    let silent_libraries = match format {
        LogFormat::Text => "warn",
        LogFormat::Json => "warn,qmesh=info",
    };
    let filter = EnvFilter::builder().parse_lossy(env::var("RUST_LOG").unwrap_or_else(|_| silent_libraries.into()));
    let records = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => {
            let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            records.with_ansi(io::stderr().is_terminal() && wanted).init();
        }
        LogFormat::Json => records.json().init(),
    }
}

/// Tells the user of something. Line ends within it stay; what a terminal would obey does not.
pub fn note(line: &str) {
    match format() {
        // Nothing can be done where nobody listens, and `eprintln!` would panic there.
        LogFormat::Text => drop(writeln!(io::stderr().lock(), "{}", escaped(line))),
        LogFormat::Json => tracing::info!(target: "qmesh", "{line}"),
    }
}

/// Tells the user why the program ends.
pub fn error(line: &str) {
    match format() {
        LogFormat::Text => note(line),
        LogFormat::Json => tracing::error!(target: "qmesh", "{line}"),
    }
}

/// Whether standard error is a terminal that shows more than lines: a progress bar.
pub fn shows_progress() -> bool {
    format() == LogFormat::Text && io::stderr().is_terminal()
}

fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or_default()
}
