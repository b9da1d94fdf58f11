//! Secret files: created once, readable by their owner alone. Only regular files are opened, so that nothing blocks.

use std::{
    fs::{self, DirBuilder, File, FileType, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

/// No more is read of a key or a secret; what we write has fewer than 100 bytes.
const FILE_BYTES: u64 = 1024;
/// What some editors put before a file that they save.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A key or secret file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The system says no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is something else than a file with bytes in it.
    #[error("{}: this is a {kind}, not a regular file", path.display())]
    NotRegular {
        /// Its path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
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

/// Reads a file of its owner's alone, of which no more than `most` bytes are taken; `None` where there is none.
///
/// # Errors
/// It is no regular file, others may read it, or the system says no.
pub fn read_private(path: &Path, most: u64) -> Result<Option<Vec<u8>>, KeyFileError> {
    match read(path, most) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(KeyFileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads `what` from the file, or creates the file with the bytes that `make` returns. `parse` says what bytes mean.
pub(crate) fn load_or_create<T>(
    path: &Path,
    what: &'static str,
    make: impl FnOnce() -> Vec<u8>,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, KeyFileError> {
    let bytes = read_or_create(path, make)?;
    // The whole comes first: a random secret may begin as a byte order mark does.
    let content = parse(&bytes).or_else(|| parse(bytes.strip_prefix(BYTE_ORDER_MARK)?));
    content.ok_or_else(|| KeyFileError::Content { path: path.into(), what })
}

/// Puts new bytes in the place of a file of its owner's alone, at once or not at all; it and its folder are made where they lack.
///
/// # Errors
/// There is something else than a regular file, or the system says no.
pub fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), KeyFileError> {
    let fresh = path.with_extension("new");
    let write = || {
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        create(&fresh, bytes)?;
        fs::rename(&fresh, path)
    };
    match check_kind(path) {
        // There is nothing yet that would be replaced.
        Err(KeyFileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        checked => checked?,
    }
    write().map_err(|source| KeyFileError::Io { path: path.into(), source })
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source, without which no TLS works either");
    bytes
}

fn read_or_create(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, KeyFileError> {
    if let Some(bytes) = read_private(path, FILE_BYTES)? {
        return Ok(bytes);
    }
    let bytes = make();
    match create(path, &bytes) {
        Ok(()) => Ok(bytes),
        // Another process was faster; its key is the key.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(path, FILE_BYTES),
        Err(source) => Err(KeyFileError::Io { path: path.into(), source }),
    }
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, KeyFileError> {
    let fail = |source| KeyFileError::Io { path: path.into(), source };
    check_kind(path)?;
    let file = File::open(path).map_err(fail)?;
    check_mode(path, &file)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(fail)?;
    Ok(bytes)
}

/// Looks at the file before it is opened: opening a FIFO waits for somebody to write.
fn check_kind(path: &Path) -> Result<(), KeyFileError> {
    let metadata = fs::metadata(path).map_err(|source| KeyFileError::Io { path: path.into(), source })?;
    let kind = metadata.file_type();
    if kind.is_file() { Ok(()) } else { Err(KeyFileError::NotRegular { path: path.into(), kind: name(kind) }) }
}

/// What is no regular file, in a word.
fn name(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;

        if kind.is_fifo() {
            return "FIFO";
        }
        if kind.is_socket() {
            return "socket";
        }
    }
    if kind.is_dir() { "directory" } else { "device" }
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

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;

    use super::*;

    fn four(bytes: &[u8]) -> Option<[u8; 4]> {
        bytes.try_into().ok()
    }

    fn load(path: &Path) -> Result<[u8; 4], KeyFileError> {
        load_or_create(path, "four bytes", || b"made".to_vec(), four)
    }

    #[test]
    fn what_is_no_regular_file_is_refused_unopened() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").args(["-m", "600"]).arg(&fifo).status().unwrap().success());
        let refusals = [
            (folder.path(), "directory", load(folder.path()).map(drop)),
            (folder.path(), "directory", replace_private(folder.path(), b"new.")),
            (&fifo, "FIFO", load(&fifo).map(drop)),
            (&fifo, "FIFO", replace_private(&fifo, b"new.")),
            (Path::new("/dev/zero"), "device", load(Path::new("/dev/zero")).map(drop)),
        ];
        for (path, expected, refused) in refusals {
            let error = refused.unwrap_err();
            assert!(matches!(error, KeyFileError::NotRegular { kind, .. } if kind == expected), "{error}");
            assert_eq!(error.to_string(), format!("{}: this is a {expected}, not a regular file", path.display()));
        }
        assert!(check_kind(&fifo).is_err(), "it is still there, and still a FIFO");
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_unless_it_is_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let read = |bytes: &[u8]| {
            replace_private(&path, bytes).unwrap();
            load(&path)
        };
        assert_eq!(read(b"\xef\xbb\xbfabcd").unwrap(), *b"abcd");
        assert_eq!(read(b"\xef\xbb\xbfa").unwrap(), *b"\xef\xbb\xbfa");
        for bad in [&b"\xef\xbb\xbfabc"[..], b"abcd\xef\xbb\xbf", b""] {
            assert!(matches!(read(bad), Err(KeyFileError::Content { what: "four bytes", .. })), "{bad:?}");
        }
    }
}
