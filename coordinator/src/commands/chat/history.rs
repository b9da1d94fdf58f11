//! The lines of earlier conversations, in a file of its owner's alone.

use std::path::PathBuf;

use qmesh_models::directories::Directories;
use qmesh_net::{KeyFileError, read_private, replace_private};

/// Where lines are kept.
#[derive(Debug)]
pub(super) struct History(PathBuf);

impl History {
    /// In the user's folder of what is nobody else's.
    pub(super) fn of(directories: &Directories) -> Self {
        Self(directories.keys().join("chat-history"))
    }

    /// The lines, the oldest first.
    ///
    /// # Errors
    /// The file is none, or others may read it.
    pub(super) fn lines(&self) -> Result<Vec<String>, KeyFileError> {
        let bytes = read_private(&self.0, BYTES as u64)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
    }

    /// Adds a line. Another conversation may have added some meanwhile.
    ///
    /// # Errors
    /// As `lines`; nothing can be written.
    pub(super) fn keep(&self, line: &str) -> Result<(), KeyFileError> {
        let line = line.trim();
        if line.is_empty() || line.len() > LINE_BYTES {
            return Ok(());
        }
        let mut lines = self.lines()?;
        if lines.last().is_some_and(|last| last == line) {
            return Ok(());
        }
        lines.extend(line.lines().map(str::to_owned));
        replace_private(&self.0, newest(&lines).as_bytes())
    }
}

/// The newest lines, as many as may be kept.
fn newest(lines: &[String]) -> String {
    let mut bytes = 0;
    let fits = |line: &&String| {
        bytes += line.len() + 1;
        bytes <= BYTES
    };
    let count = lines.iter().rev().take(LINES).take_while(fits).count();
    lines[lines.len() - count..].iter().map(|line| format!("{line}\n")).collect()
}

/// Most lines that are kept.
const LINES: usize = 1000;
/// Most bytes that are kept.
const BYTES: usize = 1 << 20;
/// A line that is longer was hardly typed.
const LINE_BYTES: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn lines_outlive_a_conversation_and_are_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let directories = Directories::under(folder.path());
        let history = History::of(&directories);
        assert_eq!(history.lines().unwrap(), Vec::<String>::new());
        for line in ["Why?\n", "Why?", "  ", "/undo", "two\nlines"] {
            history.keep(line).unwrap();
        }
        assert_eq!(History::of(&directories).lines().unwrap(), ["Why?", "/undo", "two", "lines"]);
        let mode = fs::metadata(&history.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&history.0, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(history.lines().is_err() && history.keep("x").is_err(), "others may read it");
    }

    #[test]
    fn the_oldest_lines_go_first() {
        let lines: Vec<String> = (0..LINES + 5).map(|number| number.to_string()).collect();
        let kept = newest(&lines);
        assert_eq!((kept.lines().count(), kept.lines().next()), (LINES, Some("5")));
        let long = vec!["x".repeat(LINE_BYTES); LINES];
        assert!(newest(&long).len() <= BYTES && newest(&long).len() > BYTES - 2 * LINE_BYTES);
    }
}
