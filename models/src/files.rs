//! The user's files. Only regular ones are opened, so that nothing blocks, and texts are read whole or not at all.

use std::{
    fmt,
    fs::{self, File, FileType},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

/// Why a file cannot be opened. Whoever shows it names the file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is a {0}, not a regular file")]
    NotRegular(Irregular),
}

/// What is no regular file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Irregular {
    /// A device, of characters or blocks.
    Device,
    /// A folder.
    Directory,
    /// A named pipe.
    Fifo,
    /// A socket of the file system.
    Socket,
}

/// Why a text cannot be read. Whoever shows it names the file.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read on.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// More than a text of its kind ever has.
    #[error("it has {bytes} bytes, more than the limit of {limit}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Some other encoding, or no text.
    #[error("it is not UTF-8 from byte {valid} on: save it as UTF-8")]
    NotUtf8 {
        /// How many bytes are.
        valid: usize,
    },
}

/// Bytes that the disk of `folder` has room for.
///
/// # Errors
/// The folder is not there, or its disk cannot be asked.
#[allow(clippy::useless_conversion, reason = "systems count blocks in different types")]
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = nix::sys::statvfs::statvfs(folder).map_err(io::Error::from)?;
    Ok(u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size())))
}

/// Bytes of a file that take room on the disk; none where there is no file. One that comes in chunks is as long as the whole,
/// with holes where chunks are missing.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len().min(file.blocks() * BLOCK_BYTES))
}

/// As the system counts blocks.
const BLOCK_BYTES: u64 = 512;

/// Opens the file at `path` for reading. Never blocks: what is no regular file is refused unopened.
///
/// # Errors
/// It is no regular file, or the system refuses.
pub fn open(path: &Path) -> Result<File, OpenError> {
    // Looked at before it is opened: opening a FIFO waits for somebody to write.
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() { Ok(File::open(path)?) } else { Err(OpenError::NotRegular(kind.into())) }
}

/// The text in the file at `path`, of at most `limit` bytes, without a byte order mark.
///
/// # Errors
/// As `open`; and it is longer, or not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, TextError> {
    let file = open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > limit {
        return Err(TextError::TooLong { bytes, limit });
    }
    let mut text = Vec::new();
    // It may grow meanwhile.
    file.take(limit).read_to_end(&mut text)?;
    let mut text = String::from_utf8(text).map_err(|e| TextError::NotUtf8 { valid: e.utf8_error().valid_up_to() })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// What some editors put before a text. It is no part of it.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

impl From<FileType> for Irregular {
    fn from(kind: FileType) -> Self {
        if kind.is_dir() {
            Self::Directory
        } else if kind.is_fifo() {
            Self::Fifo
        } else if kind.is_socket() {
            Self::Socket
        } else {
            Self::Device
        }
    }
}

impl fmt::Display for Irregular {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Directory => "directory",
            Self::Fifo => "FIFO",
            Self::Socket => "socket",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, process::Command};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_unopened() {
        let folder = tempfile::tempdir().unwrap();
        let [fifo, socket, none] = ["fifo", "socket", "none"].map(|name| folder.path().join(name));
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, kind) in
            [(folder.path(), "directory"), (&fifo, "FIFO"), (&socket, "socket"), (Path::new("/dev/zero"), "device")]
        {
            let expected = format!("this is a {kind}, not a regular file");
            assert_eq!(open(path).unwrap_err().to_string(), expected);
            assert_eq!(read_text(path, 10).unwrap_err().to_string(), expected);
        }
        assert!(matches!(open(&none), Err(OpenError::Io(error)) if error.kind() == io::ErrorKind::NotFound));
    }

    #[test]
    fn texts_are_read_whole_and_without_a_byte_order_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        let read = |bytes: &[u8], limit| {
            fs::write(&path, bytes).unwrap();
            read_text(&path, limit)
        };
        assert_eq!(read(b"\xef\xbb\xbfa\n", 5).unwrap(), "a\n");
        assert_eq!(read("a\u{feff}b".as_bytes(), 5).unwrap(), "a\u{feff}b", "within a text it is text");
        assert_eq!(read(b"", 0).unwrap(), "");
        assert_eq!(read(b"abc", 2).unwrap_err().to_string(), "it has 3 bytes, more than the limit of 2");
        let encoded = read(b"a\xff", 5).unwrap_err().to_string();
        assert_eq!(encoded, "it is not UTF-8 from byte 1 on: save it as UTF-8");
    }
}
