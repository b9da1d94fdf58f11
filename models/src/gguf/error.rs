//! What can be wrong with a GGUF file: each a line that says where, how much and what to do.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::limits;
use crate::files::{Irregular, OpenError};

/// A file that cannot be used, and why.
#[derive(Debug, Error)]
#[error("{}: {fault}", path.display())]
pub struct GgufError {
    /// The file; of a split model the part at fault.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: GgufFault,
}

/// What is wrong with a GGUF file. Offsets and lengths are in bytes.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum GgufFault {
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    #[error("this is a {kind}, not a regular file; name the .gguf file itself")]
    NotAFile { kind: Irregular },
    #[error("not a GGUF: file is {bytes} bytes; download it again")]
    TooShort { bytes: u64 },
    #[error("not a GGUF: {looks_like}")]
    Foreign { looks_like: &'static str },
    #[error("big-endian GGUF: convert it to little-endian first")]
    BigEndian,
    #[error("GGUF version {found} is not supported; supported: 2, 3")]
    Version { found: u32 },
    #[error("header says {found} {what}, at most {limit} are possible in this file; download it again")]
    TooMany { what: &'static str, found: u64, limit: u64 },
    #[error("truncated: {subject} at byte {at} needs {need} bytes, have {have}; download it again")]
    Truncated { subject: String, at: u64, need: u64, have: u64 },
    #[error("only the first {have} bytes are here, and the header has {bytes} at least; read on")]
    MoreNeeded { bytes: u64, have: u64 },
    #[error("header is longer than the limit of {} bytes, at {subject}", limits::HEADER_BYTES_MAX)]
    HeaderTooLong { subject: String },
    #[error("{subject} at byte {at}: text of {found} bytes is over the limit of {limit}")]
    TextTooLong { subject: String, at: u64, found: u64, limit: u64 },
    #[error("{subject} at byte {at}: the name is not UTF-8")]
    NotUtf8 { subject: String, at: u64 },
    #[error("{subject} at byte {at}: the name is empty")]
    EmptyName { subject: String, at: u64 },
    #[error("key {key:?} occurs twice")]
    DuplicateKey { key: String },
    #[error("{subject} at byte {at}: unknown value type {found}")]
    UnknownValueType { subject: String, at: u64, found: u32 },
    #[error("{subject} at byte {at}: boolean with value {found}, only 0 and 1 are possible")]
    NotBoolean { subject: String, at: u64, found: u8 },
    #[error("{subject} at byte {at}: arrays nested deeper than {}", limits::NESTING_MAX)]
    NestedTooDeep { subject: String, at: u64 },
    #[error("key \"general.alignment\" is {found}, not a power of two up to {}", limits::ALIGNMENT_MAX)]
    Alignment { found: u64 },
    #[error("tensor {tensor:?} has {found} dimensions, only 1 to 4 are possible")]
    Axes { tensor: String, found: u32 },
    #[error("tensor {tensor:?}: dimension {axis} is {found}, only 1 to 2^63 - 1 are possible")]
    Dimension { tensor: String, axis: usize, found: u64 },
    #[error("tensor {tensor:?}: its size overflows 64 bits")]
    SizeOverflow { tensor: String },
    #[error("tensor {tensor:?}: rows of {cols} elements do not divide into {kind} blocks of {block_len}")]
    PartialBlock { tensor: String, cols: u64, kind: String, block_len: u64 },
    #[error("tensor {tensor:?} occurs twice")]
    DuplicateTensor { tensor: String },
    #[error("tensor {tensor:?}: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { tensor: String, offset: u64, alignment: u64 },
    #[error("truncated: tensor {tensor:?} needs the file to be {need} bytes, have {have}; download it again")]
    TensorBeyondEnd { tensor: String, need: u64, have: u64 },
    #[error("tensors {first:?} and {second:?} overlap")]
    Overlap { first: String, second: String },
    #[error("part {part} of {count} must be named NAME-{part:05}-of-{count:05}.gguf; restore its name")]
    PartName { part: u64, count: u64 },
    #[error("this part of a split model is missing; download it")]
    PartMissing,
    #[error("split model: key {key:?} is {found}, expected {expected}; the parts do not belong together")]
    SplitMismatch { key: &'static str, expected: u64, found: u64 },
    #[error("split model: the parts hold {found} tensors, key \"split.tensors.count\" says {expected}")]
    SplitTensors { expected: u64, found: u64 },
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<OpenError> for GgufFault {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Io(error) => Self::Io(error),
            OpenError::NotRegular(kind) => Self::NotAFile { kind },
        }
    }
}

/// A metadata key that is not there or not of the type that its reader needs.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum KeyError {
    #[error("key {key:?} is missing")]
    Missing { key: String },
    #[error("key {key:?} should be {expected}, not {found}")]
    Type { key: String, expected: &'static str, found: String },
}

/// Turns a missing key into `None`, and leaves every other error.
pub trait OptionalKey<T> {
    /// `Ok(None)` where the key is missing.
    ///
    /// # Errors
    /// A key of the wrong type is still an error.
    fn optional(self) -> Result<Option<T>, KeyError>;
}

impl<T> OptionalKey<T> for Result<T, KeyError> {
    fn optional(self) -> Result<Option<T>, KeyError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(KeyError::Missing { .. }) => Ok(None),
            Err(error @ KeyError::Type { .. }) => Err(error),
        }
    }
}
