//! How the program says what came of it: results on standard output, and why it ended, in one line on standard error.

use std::io::{self, Write, stdout};

use qmesh_models::terminal::{escaped, escaped_json, escaped_line};

/// Exit code of a refusal that the user can mend, and of wrong arguments (clap's own).
pub(super) const USAGE: u8 = 2;

/// Why it ends, in one line; some of it comes from the coordinator.
pub(super) fn say(error: &str) {
    qmesh_logging::error(&format!("error: {}", escaped_line(error)));
}

/// The error and its causes, without those that it quotes itself.
pub(super) fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.contains(&cause) {
        true => line,
        false if line.is_empty() => cause,
        false => format!("{line}: {cause}"),
    })
}

/// Writes a result for people, and a line end. Where nobody reads it any more, nothing is left to do.
pub(super) fn print_text(text: &str) -> io::Result<()> {
    ended(writeln!(stdout().lock(), "{}", escaped(text)))
}

/// Writes a result for programs, and a line end.
pub(super) fn print_json(json: &serde_json::Value) -> io::Result<()> {
    ended(writeln!(stdout().lock(), "{}", escaped_json(&format!("{json:#}"))))
}

fn ended(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
