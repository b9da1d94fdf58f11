//! What can go wrong with a shared model.

use std::{io, path::PathBuf};

use qmesh_net::NetError;
use thiserror::Error;

use crate::manifest::ManifestError;

/// Why a model cannot be shared, or got.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShareError {
    /// A file of it cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The manifest is not what the link says, or makes no sense.
    #[error("the manifest: {0}")]
    Manifest(#[from] ManifestError),
    /// No holder answers, or none lets us read.
    #[error("{}: {source}", source.kind())]
    Net {
        /// What happened.
        #[from]
        source: NetError,
    },
    /// All holders went away, and none came back in time.
    #[error(
        "nobody who has the rest of the model has answered for {seconds} s; what is here is kept, and the next pull goes on"
    )]
    Alone {
        /// How long it was waited for.
        seconds: u64,
    },
}

/// Names the file of an error of the system.
pub(crate) fn in_file(path: &std::path::Path) -> impl Fn(io::Error) -> ShareError {
    move |source| ShareError::File { path: path.to_owned(), source }
}
