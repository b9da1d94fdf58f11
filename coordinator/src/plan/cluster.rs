//! Cluster files: the workers to plan for, as TOML.
//!
//! ```toml
//! [[worker]]
//! name = "laptop"
//! memory = "8GB"
//! threads = 8
//! ```

use std::path::{Path, PathBuf};

use qmesh_models::{
    bytes::ByteCount,
    files::{self, TextError},
};
use serde::Deserialize;

use super::Capacity;

/// Why a cluster file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It cannot be read.
    #[error("cannot read the cluster file {path}: {source}")]
    Unreadable {
        /// As the user wrote it.
        path: PathBuf,
        /// What is wrong with it, or what the system says.
        source: TextError,
    },
    /// It cannot be understood.
    #[error("{path}:{line}: {text}")]
    Invalid {
        /// As the user wrote it.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key, and what is wrong with it.
        text: String,
    },
    /// It understands itself, but plans for nobody.
    #[error("{path}: {text}")]
    Useless {
        /// As the user wrote it.
        path: PathBuf,
        /// What is missing or too much.
        text: String,
    },
}

/// The workers of the cluster file at `path`, in its order.
///
/// # Errors
/// Names the file, and the line and key at fault.
pub fn read(path: &Path) -> Result<Vec<Capacity>, ClusterError> {
    let text = files::read_text(path, FILE_BYTES_MAX)
        .map_err(|source| ClusterError::Unreadable { path: path.to_owned(), source })?;
    parse(path, &text)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with a list of workers")]
struct ClusterFile {
    #[serde(default)]
    worker: Vec<WorkerEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table with name, memory and threads")]
struct WorkerEntry {
    name: String,
    memory: ByteCount,
    threads: u32,
}

fn parse(path: &Path, text: &str) -> Result<Vec<Capacity>, ClusterError> {
    let file: ClusterFile = toml::from_str(text).map_err(|error| invalid(path, text, &error))?;
    let useless = |text: String| Err(ClusterError::Useless { path: path.to_owned(), text });
    if file.worker.is_empty() {
        return useless("no worker: add [[worker]] with name, memory and threads".to_owned());
    }
    if file.worker.len() > WORKERS_MAX {
        return useless(format!("{} workers, at most {WORKERS_MAX} are possible", file.worker.len()));
    }
    let mut workers: Vec<Capacity> = Vec::new();
    for WorkerEntry { name, memory, threads } in file.worker {
        if workers.iter().any(|known| known.name == name) {
            return useless(format!("two workers are called `{name}`"));
        }
        if threads == 0 {
            return useless(format!("worker `{name}`: threads must be at least 1"));
        }
        workers.push(Capacity { name, memory_bytes: memory.0, threads });
    }
    Ok(workers)
}

fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ClusterError {
    let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let key = text[line_start..].lines().next().and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    // The parser names the keys that it does not know or that are missing, but not the ones with a bad value.
    let message = error.message().trim().replace('\n', ", ");
    let text = match key {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("{key}: {message}"),
        Some(_) | None => message,
    };
    ClusterError::Invalid { path: path.to_owned(), line: before.matches('\n').count() + 1, text }
}

/// A hundred bytes a worker and to spare.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// More stages than any model has layers.
const WORKERS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(Path::new("c.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn reads_workers_in_order() {
        let text =
            "[[worker]]\nname = 'a'\nmemory = '8GB'\nthreads = 8\n\n[[worker]]\nthreads=2\nmemory='512MiB'\nname='b'";
        let workers = parse(Path::new("c.toml"), text).unwrap();
        let shown: Vec<_> = workers.iter().map(|w| (w.name.as_str(), w.memory_bytes, w.threads)).collect();
        assert_eq!(shown, [("a", 8_000_000_000, 8), ("b", 512 << 20, 2)]);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let worker = "[[worker]]\nname = 'a'\nthreads = 2\n";
        let bad_size = error(&format!("{worker}memory = 'lots'\n"));
        assert_eq!(bad_size, "c.toml:4: memory: `lots` is no size: write it like 800MB, 8GB or 512MiB");
        assert!(error(&format!("{worker}memory = 8")).starts_with("c.toml:4: memory: invalid type"));
        let numbers = error("worker = [7]");
        assert_eq!(
            numbers,
            "c.toml:1: worker: invalid type: integer `7`, expected a table with name, memory and threads"
        );
        assert!(
            error(&format!("{worker}memory = 8")).ends_with("expected a size in quotes, such as \"8GB\" or \"512MiB\"")
        );
        assert!(error(&format!("{worker}memry = '1GB'")).starts_with("c.toml:4: unknown field `memry`"));
        assert_eq!(error(worker), "c.toml:1: missing field `memory`");
        assert!(error("[[worker]\n").starts_with("c.toml:1: "));
        assert!(error("").contains("no worker: add [[worker]]"));
        let twice = format!("{worker}memory='1GB'\n{worker}memory='1GB'\n");
        assert_eq!(error(&twice), "c.toml: two workers are called `a`");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home.toml");
        std::fs::write(&path, "\u{feff}[[worker]]\r\nname = 'a'\r\nmemory = '4Gi'\r\nthreads = 2\r\n").unwrap();
        assert_eq!(read(&path).unwrap()[0].memory_bytes, 4 << 30);
        let refused = read(folder.path()).unwrap_err().to_string();
        assert!(refused.ends_with("this is a directory, not a regular file"), "{refused}");
    }
}
