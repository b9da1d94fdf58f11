//! A model's folder in the cache: its lock, the room on its disk and the record of what belongs in it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Progress, PullError, names};
use crate::files::free_bytes;

const LOCK_POLL: Duration = Duration::from_millis(100);
/// Left free on the disk for everybody else, in bytes.
const RESERVE: u64 = 64 << 20;

/// What a hub or web reference stands for: written before its files are fetched, so that a list can tell a partial
/// model and a later pull needs no network.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct SlotRecord {
    /// The reference, in its most exact form.
    pub(super) name: String,
    /// Local names of the model's files, in order.
    pub(super) files: Vec<String>,
}

impl SlotRecord {
    /// The record at `path`; `None` where there is none, or where it names what is no plain file name.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let record: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (!record.files.is_empty() && record.files.iter().all(|file| names::is_component(file))).then_some(record)
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), PullError> {
        write_json(self, path)
    }

    /// The first file, where all of them are complete: only complete files have their final names.
    pub(super) fn whole(&self, folder: &Path) -> Option<PathBuf> {
        let all = self.files.iter().all(|file| folder.join(file).is_file());
        all.then(|| folder.join(&self.files[0]))
    }
}

/// Creates `folder` and takes its lock, which is let go when the file is dropped or the process ends. Waits at most
/// `wait` for another process to let go of it.
pub(super) fn lock(folder: &Path, wait: Duration, progress: &mut dyn Progress) -> Result<File, PullError> {
    fs::create_dir_all(folder).map_err(failed("create", folder))?;
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(failed("create", &path))?;
    let deadline = Instant::now() + wait;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(PullError::Busy { folder: folder.into() });
            }
            Err(TryLockError::WouldBlock) => {
                if !told {
                    progress.begin("waiting for another process that pulls the same model", None);
                    told = true;
                }
                thread::sleep(LOCK_POLL);
            }
        }
    }
}

/// Checks that `needed` bytes fit on the disk of `folder`.
pub(super) fn ensure_space(folder: &Path, needed: u64) -> Result<(), PullError> {
    let free = free_bytes(folder).map_err(failed("measure the disk of", folder))?;
    let needed = needed.saturating_add(RESERVE);
    if needed <= free {
        return Ok(());
    }
    Err(PullError::NoSpace { folder: folder.into(), needed_mib: needed.div_ceil(1 << 20), free_mib: free >> 20 })
}

/// Replaces `path` at once by `value` as JSON.
pub(super) fn write_json(value: &impl Serialize, path: &Path) -> Result<(), PullError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.as_file().sync_data()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(failed("write", path))
}

/// Turns an IO error into one that names what failed.
pub(super) fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> PullError {
    move |source| PullError::Io { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::Silent;

    #[test]
    fn a_lock_has_one_holder_and_a_wait_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path(), Duration::ZERO, &mut Silent).unwrap();
        let refused = lock(folder.path(), Duration::from_millis(50), &mut Silent);
        assert!(matches!(refused, Err(PullError::Busy { .. })), "{refused:?}");
        drop(held);
        lock(folder.path(), Duration::ZERO, &mut Silent).unwrap();
    }

    #[test]
    fn room_is_checked_and_records_with_paths_in_them_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        ensure_space(folder.path(), 1).unwrap();
        assert!(matches!(ensure_space(folder.path(), u64::MAX), Err(PullError::NoSpace { .. })));

        let path = folder.path().join("a.json");
        let record = SlotRecord { name: "hf:o/r".into(), files: vec!["a.gguf".into()] };
        record.write(&path).unwrap();
        assert_eq!(SlotRecord::read(&path), Some(record));
        SlotRecord { name: "hf:o/r".into(), files: vec!["../a.gguf".into()] }.write(&path).unwrap();
        assert_eq!(SlotRecord::read(&path), None);
    }
}
