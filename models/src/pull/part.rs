//! A file on its way: `NAME.part` with its running SHA-256, and a sidecar that says how much of it can be trusted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Progress, PullError, slot::failed, slot::write_json};

/// How much may be lost when the process is killed, in bytes.
const CHECKPOINT: u64 = 32 << 20;
/// Blocks in which files are read, in bytes.
pub(super) const BLOCK: usize = 256 << 10;

/// What a complete file must be.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// Length in bytes, where it is known.
    pub(super) bytes: Option<u64>,
    /// 64 lower-case hex digits, where they are known.
    pub(super) sha256: Option<String>,
}

/// What of a part is on the disk for certain, and what it is a part of.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Sidecar {
    /// Tells one content from another; a part of something else is worth nothing.
    identity: String,
    /// Bytes from the start that are known to be written.
    durable_bytes: u64,
    /// The server's `ETag` or `Last-Modified` of these bytes.
    pub(super) validator: Option<String>,
    /// How many wheels are joined.
    pub(super) wheels: usize,
}

/// A file that is being fetched to `target`. The caller holds the lock of its folder.
pub(super) struct PartialFile {
    target: PathBuf,
    path: PathBuf,
    sidecar_path: PathBuf,
    /// What is known of the bytes so far.
    pub(super) sidecar: Sidecar,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl PartialFile {
    /// Takes up what an earlier try for the same `identity` left, or begins anew.
    pub(super) fn open(target: &Path, identity: &str, progress: &mut dyn Progress) -> Result<Self, PullError> {
        let (path, sidecar_path) = (part_path(target), sidecar_path(target));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(failed("open", &path))?;
        let left: Option<Sidecar> = fs::read(&sidecar_path).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let there = file.metadata().map_err(failed("read", &path))?.len();
        let usable = left.filter(|left| left.identity == identity && left.durable_bytes <= there);
        let sidecar = usable.unwrap_or_else(|| Sidecar { identity: identity.into(), ..Sidecar::default() });
        let hasher = Sha256::new();
        let mut part = Self { target: target.into(), path, sidecar_path, sidecar, file, hasher, bytes: 0 };
        part.take_up(progress).map_err(failed("read", &part.path))?;
        Ok(part)
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds `block` at the end.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), PullError> {
        self.file.write_all(block).map_err(failed("write", &self.path))?;
        self.hasher.update(block);
        self.bytes += block.len() as u64;
        Ok(())
    }

    /// Makes what is there survive the process and the machine.
    pub(super) fn checkpoint(&mut self) -> Result<(), PullError> {
        self.file.sync_data().map_err(failed("write", &self.path))?;
        self.sidecar.durable_bytes = self.bytes;
        write_json(&self.sidecar, &self.sidecar_path)
    }

    /// The same, where much has come since the last time.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<(), PullError> {
        if self.bytes - self.sidecar.durable_bytes < CHECKPOINT { Ok(()) } else { self.checkpoint() }
    }

    /// Throws away what is there.
    pub(super) fn restart(&mut self) -> Result<(), PullError> {
        self.sidecar.durable_bytes = 0;
        self.sidecar.validator = None;
        self.sidecar.wheels = 0;
        self.hasher = Sha256::new();
        self.bytes = 0;
        write_json(&self.sidecar, &self.sidecar_path)?;
        let rewind = self.file.set_len(0).and_then(|()| self.file.rewind());
        rewind.map_err(failed("write", &self.path))
    }

    /// Checks the whole and gives it its final name; what is wrong is deleted.
    pub(super) fn finish(mut self, expected: &Expected) -> Result<(), PullError> {
        if let Err(error) = self.check(expected) {
            self.discard()?;
            return Err(error);
        }
        self.file.sync_all().map_err(failed("write", &self.path))?;
        fs::rename(&self.path, &self.target).map_err(failed("rename", &self.path))?;
        // The rename is durable once its folder is; a file system that cannot sync folders loses at most this pull.
        let _ = self.target.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all()));
        remove(&self.sidecar_path)
    }

    fn check(&mut self, expected: &Expected) -> Result<(), PullError> {
        let what = || self.target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(bytes) = expected.bytes.filter(|&bytes| bytes != self.bytes) {
            return Err(PullError::Length { what: what(), expected: bytes, actual: self.bytes });
        }
        let actual = hex(&self.hasher.finalize_reset());
        if let Some(sha256) = expected.sha256.as_ref().filter(|&sha256| *sha256 != actual) {
            return Err(PullError::Digest { what: what(), expected: sha256.clone(), actual });
        }
        let mut magic = [0; 4];
        let read = self.file.rewind().and_then(|()| self.file.read_exact(&mut magic));
        if read.is_err() || magic != *b"GGUF" {
            return Err(PullError::NotGguf { what: what() });
        }
        Ok(())
    }

    fn discard(&self) -> Result<(), PullError> {
        remove(&self.sidecar_path)?;
        remove(&self.path)
    }

    /// Hashes the trusted bytes and cuts off the rest.
    fn take_up(&mut self, progress: &mut dyn Progress) -> io::Result<()> {
        let durable = self.sidecar.durable_bytes;
        self.file.set_len(durable)?;
        if durable == 0 {
            return Ok(());
        }
        progress.begin("checking what is already here", Some(durable));
        let mut block = vec![0; BLOCK];
        loop {
            let n = self.file.read(&mut block)?;
            if n == 0 {
                break;
            }
            self.hasher.update(&block[..n]);
            self.bytes += n as u64;
            progress.advance(self.bytes);
        }
        self.file.seek(SeekFrom::End(0))?;
        progress.finish();
        Ok(())
    }
}

/// Where the bytes of `target` are until it is complete.
pub(super) fn part_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part")
}

fn sidecar_path(target: &Path) -> PathBuf {
    with_suffix(target, ".part.json")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> Result<(), PullError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("delete", path)(source)),
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::Silent;

    #[test]
    fn only_the_checkpointed_bytes_of_the_same_content_are_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let mut part = PartialFile::open(&target, "one", &mut Silent).unwrap();
        part.append(b"GGUF first").unwrap();
        part.checkpoint().unwrap();
        part.append(b" lost").unwrap();
        drop(part);

        let mut part = PartialFile::open(&target, "one", &mut Silent).unwrap();
        assert_eq!(part.bytes(), 10);
        part.append(b" second").unwrap();
        let sha256 = Some(hex(&Sha256::digest(b"GGUF first second")));
        part.finish(&Expected { bytes: Some(17), sha256 }).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"GGUF first second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let mut part = PartialFile::open(&target, "one", &mut Silent).unwrap();
        part.append(b"GGUF").unwrap();
        part.checkpoint().unwrap();
        drop(part);
        assert_eq!(PartialFile::open(&target, "two", &mut Silent).unwrap().bytes(), 0);
    }

    #[test]
    fn what_is_wrong_is_deleted_and_never_gets_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("m.gguf");
        let finish = |content: &[u8], expected: Expected| {
            let mut part = PartialFile::open(&target, "x", &mut Silent).unwrap();
            part.append(content).unwrap();
            part.checkpoint().unwrap();
            part.finish(&expected).unwrap_err()
        };
        let short = finish(b"GGUF", Expected { bytes: Some(5), sha256: None });
        assert_eq!(short.to_string(), "m.gguf has 4 bytes instead of 5");
        let digest = finish(b"GGUF", Expected { bytes: None, sha256: Some("0".repeat(64)) });
        assert!(matches!(digest, PullError::Digest { .. }));
        assert!(matches!(finish(b"<html>", Expected::default()), PullError::NotGguf { .. }));
        assert!(matches!(finish(b"", Expected::default()), PullError::NotGguf { .. }));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
