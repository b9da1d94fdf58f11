//! The header of one part, read from as much of the file as is here.

use std::path::PathBuf;

use super::{
    Part,
    error::GgufFault,
    header::{self, Header},
};

/// The header of one file of a model. All parts together make a [`Gguf`](super::Gguf).
pub struct PartHeader {
    pub(super) header: Header,
    pub(super) part: Part,
}

impl PartHeader {
    /// Parses `bytes`, the start of the file at `path` that is `file_bytes` long. Where each tensor lies is checked against
    /// that length, not against what is here.
    ///
    /// # Errors
    /// [`GgufFault::MoreNeeded`] where the file goes on and the header does too; else what is wrong with the bytes.
    pub fn parse(path: PathBuf, bytes: &[u8], file_bytes: u64) -> Result<Self, GgufFault> {
        let header = header::parse(bytes, bytes.len() as u64, file_bytes)?;
        let header_bytes = header.body_start.min(file_bytes);
        Ok(Self { header, part: Part { path, bytes: file_bytes, header_bytes, modified: None } })
    }
}
