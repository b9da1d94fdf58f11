//! How the program says why it ended: in one line on standard error.

use qmesh_models::terminal::escaped_line;

/// Exit code of a refusal that the user can mend, and of wrong arguments (clap's own).
pub(super) const USAGE: u8 = 2;

/// Why it ends, in one line; some of it comes from the coordinator.
pub(super) fn say(error: &str) {
    eprintln!("error: {}", escaped_line(error));
}

/// The error and its causes, without those that it quotes itself.
pub(super) fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.contains(&cause) {
        true => line,
        false if line.is_empty() => cause,
        false => format!("{line}: {cause}"),
    })
}
