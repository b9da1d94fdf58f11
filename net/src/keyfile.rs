//! Secret files: created once, readable by their owner alone.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

/// No secret file is longer; ours are below 100 bytes.
const FILE_BYTES: u64 = 1024;

/// A key or secret file that cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error("{} is readable by others (mode {mode:03o}): run chmod 600 on it", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error("{} does not hold {what}: delete it and a new one is made", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
}

/// Reads the file, or creates it with the bytes that `make` returns.
pub(crate) fn load_or_create(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, KeyFileError> {
    match open_to_read(path) {
        Ok(bytes) => Ok(bytes),
        Err(KeyFileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
            let bytes = make();
            match create(path, &bytes) {
                Ok(()) => Ok(bytes),
                // Another process was faster; its key is the key.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => open_to_read(path),
                Err(source) => Err(KeyFileError::Io { path: path.into(), source }),
            }
        }
        Err(error) => Err(error),
    }
}

/// Puts new bytes in the place of the file, at once or not at all.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let fresh = path.with_extension("new");
    let write = || {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        create(&fresh, bytes)?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| KeyFileError::Io { path: path.into(), source })
}

/// Bytes nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source, without which no TLS works either");
    bytes
}

fn open_to_read(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let fail = |source| KeyFileError::Io { path: path.into(), source };
    let file = File::open(path).map_err(fail)?;
    check_mode(path, &file)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut folder = DirBuilder::new();
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        folder.mode(0o700);
        options.mode(0o600);
    }
    if let Some(parent) = path.parent() {
        folder.recursive(true).create(parent)?;
    }
    let mut file = options.write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(unix)]
fn check_mode(path: &Path, file: &File) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = file.metadata().map_err(|source| KeyFileError::Io { path: path.into(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyFileError::Readable { path: path.into(), mode }) }
}

#[cfg(not(unix))]
fn check_mode(_path: &Path, _file: &File) -> Result<(), KeyFileError> {
    Ok(())
}
