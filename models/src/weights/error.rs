//! Why weights cannot be read.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why weights cannot be read.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum WeightsError {
    #[error("{}: cannot read: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: model file changed since it was opened; restart with the file as it is now", path.display())]
    Changed { path: PathBuf },
    #[error("bytes {offset} to {offset} + {bytes} of part {part} are outside the model")]
    Outside { part: usize, offset: u64, bytes: u64 },
}
