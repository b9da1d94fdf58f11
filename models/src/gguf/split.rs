//! Opens a file, or all parts of a split model: `NAME-00001-of-00003.gguf` and its siblings.

use std::{
    ffi::OsStr,
    io::{self, BufReader},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::{
    Gguf, Part, PartHeader,
    error::{GgufError, GgufFault},
    header::{self, Header},
};
use crate::files;

/// Reads the headers of the file at `path` and of all its siblings, in order.
pub(super) fn read(path: &Path) -> Result<Vec<(Header, Part)>, GgufError> {
    let at = |fault| GgufError { path: path.to_owned(), fault };
    let opened = read_file(path)?;
    let Some(place) = place(&opened.0).map_err(at)? else { return Ok(vec![opened]) };
    let stem = stem(path, place).ok_or(GgufFault::PartName { part: place.no + 1, count: place.count }).map_err(at)?;
    let mut opened = Some(opened);
    let mut parts = Vec::new();
    for no in 0..place.count {
        let expected = PartNumber { no, ..place };
        let part = match opened.take_if(|_| no == place.no) {
            Some(part) => part,
            None => read_sibling(&sibling(path, stem, expected), expected)?,
        };
        parts.push(part);
    }
    Ok(parts)
}

/// Checks what the metadata says about parts and tensors against what is there.
pub(super) fn check(model: &Gguf) -> Result<(), GgufFault> {
    let parts = model.parts.len() as u64;
    let count = header::read_optional(&model.metadata, "split.count")?.unwrap_or(1).max(1);
    if count != parts {
        return Err(GgufFault::SplitMismatch { key: "split.count", expected: parts, found: count });
    }
    let found = model.tensors.len() as u64;
    match header::read_optional(&model.metadata, "split.tensors.count")? {
        Some(expected) if expected != found => Err(GgufFault::SplitTensors { expected, found }),
        _ => Ok(()),
    }
}

/// Whether `parts` are all parts of one model, each in its place.
pub(super) fn check_order(parts: &[PartHeader]) -> Result<(), GgufError> {
    let count = parts.len() as u64;
    for (no, part) in (0..).zip(parts) {
        let at = |fault| GgufError { path: part.part.path.clone(), fault };
        match place(&part.header).map_err(at)? {
            Some(found) if count == 1 => {
                return Err(at(GgufFault::PartName { part: found.no + 1, count: found.count }));
            }
            found => check_place(found, PartNumber { no, count }).map_err(at)?,
        }
    }
    Ok(())
}

fn check_place(found: Option<PartNumber>, expected: PartNumber) -> Result<(), GgufFault> {
    let found = found.unwrap_or(PartNumber { no: 0, count: 1 });
    if found.count != expected.count {
        return Err(GgufFault::SplitMismatch { key: "split.count", expected: expected.count, found: found.count });
    }
    if found.no != expected.no {
        return Err(GgufFault::SplitMismatch { key: "split.no", expected: expected.no, found: found.no });
    }
    Ok(())
}

/// Part `no`, from 0, of `count`.
#[derive(Clone, Copy, PartialEq)]
struct PartNumber {
    no: u64,
    count: u64,
}

impl PartNumber {
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.no + 1, self.count)
    }
}

/// Where a file stands in its model; `None` where it is the whole of it.
fn place(header: &Header) -> Result<Option<PartNumber>, GgufFault> {
    let count = header::read_optional(&header.metadata, "split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(None);
    }
    let no = header::read_optional(&header.metadata, "split.no")?.unwrap_or(0);
    if no >= count {
        return Err(GgufFault::SplitMismatch { key: "split.no", expected: count - 1, found: no });
    }
    Ok(Some(PartNumber { no, count }))
}

/// The file name of a part without its suffix; as bytes, for names that are not UTF-8.
fn stem(path: &Path, place: PartNumber) -> Option<&[u8]> {
    path.file_name()?.as_bytes().strip_suffix(place.suffix().as_bytes())
}

fn sibling(path: &Path, stem: &[u8], place: PartNumber) -> PathBuf {
    path.with_file_name(OsStr::from_bytes(&[stem, place.suffix().as_bytes()].concat()))
}

fn read_sibling(path: &Path, expected: PartNumber) -> Result<(Header, Part), GgufError> {
    let at = |fault| GgufError { path: path.to_owned(), fault };
    let part = read_file(path).map_err(|error| {
        let absent = matches!(&error.fault, GgufFault::Io(cause) if cause.kind() == io::ErrorKind::NotFound);
        if absent { at(GgufFault::PartMissing) } else { error }
    })?;
    check_place(place(&part.0).map_err(at)?, expected).map_err(at)?;
    Ok(part)
}

fn read_file(path: &Path) -> Result<(Header, Part), GgufError> {
    let read = || {
        let file = files::open(path)?;
        let opened = file.metadata()?;
        let header = header::parse(BufReader::with_capacity(READ_BYTES, &file), opened.size(), opened.size())?;
        let part = Part {
            path: path.to_owned(),
            bytes: opened.size(),
            header_bytes: header.body_start.min(opened.size()),
            modified: Some(opened.modified()?),
        };
        Ok((header, part))
    };
    read().map_err(|fault| GgufError { path: path.to_owned(), fault })
}

const READ_BYTES: usize = 256 << 10;
