//! The header of one file: metadata, and where each tensor lies.

use std::{
    collections::{BTreeMap, HashSet},
    io::Read,
};

use super::{
    GgmlType, TensorEntry,
    error::{GgufFault, KeyError, OptionalKey},
    limits::ALIGNMENT_MAX,
    reader::Reader,
    value::Value,
};

/// Alignment of tensors where the file does not say.
pub(super) const ALIGNMENT_DEFAULT: u64 = 32;
/// Magic, version and the two counts.
const FIXED_BYTES: u64 = 24;
/// Most keys and tensors of one file; real ones have under a hundred and a few thousand.
const KEYS_MAX: u64 = 1 << 16;
const TENSORS_MAX: u64 = 1 << 18;

/// What a file says about itself before its tensors' bytes.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<TensorEntry>,
    /// Offset of the first tensor byte.
    pub(super) body_start: u64,
    /// Bytes of the body that belong to no tensor, beyond what alignment explains.
    pub(super) unused_bytes: u64,
}

/// Parses the header of a file of `file_bytes`, of which `input` yields the first `readable`.
pub(super) fn parse(input: impl Read, readable: u64, file_bytes: u64) -> Result<Header, GgufFault> {
    if file_bytes < FIXED_BYTES {
        return Err(GgufFault::TooShort { bytes: file_bytes });
    }
    // No file is longer, and so no sum of lengths inside it overflows below.
    let file_bytes = file_bytes.min(i64::MAX as u64);
    let mut reader = Reader::new(input, readable, file_bytes);
    let version = version(&reader.take::<8>()?)?;
    let tensor_count = reader.u64()?;
    let key_count = reader.u64()?;
    // No key is under 13 bytes, no tensor's entry under 24: a count that the file cannot hold is refused at once.
    check_count("keys", key_count, KEYS_MAX, reader.remaining() / 13)?;
    check_count("tensors", tensor_count, TENSORS_MAX, reader.remaining() / 24)?;
    let metadata = metadata(&mut reader, key_count)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    for index in 0..tensor_count {
        reader.set_subject(format!("entry of tensor {index}"));
        tensors.push(tensor(&mut reader)?);
    }
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|t| !names.insert(&t.name)) {
        return Err(GgufFault::DuplicateTensor { tensor: twice.name.clone() });
    }
    let body_start = reader.offset().next_multiple_of(alignment);
    for tensor in &mut tensors {
        place(tensor, body_start, alignment, file_bytes)?;
    }
    let unused_bytes = unused(&tensors, body_start, alignment, file_bytes)?;
    Ok(Header { version, metadata, tensors, body_start, unused_bytes })
}

/// The value of `key` as `pick` reads it.
pub(super) fn read<'a, T>(
    metadata: &'a BTreeMap<String, Value>,
    key: &str,
    expected: &'static str,
    pick: impl Fn(&'a Value) -> Option<T>,
) -> Result<T, KeyError> {
    let value = metadata.get(key).ok_or_else(|| KeyError::Missing { key: key.to_owned() })?;
    pick(value).ok_or_else(|| KeyError::Type { key: key.to_owned(), expected, found: value.describe() })
}

/// The unsigned integer of `key`, where the key is there.
pub(super) fn read_optional(metadata: &BTreeMap<String, Value>, key: &str) -> Result<Option<u64>, KeyError> {
    read(metadata, key, "an unsigned integer", Value::unsigned).optional()
}

/// The version after the magic, where we can read it.
fn version(start: &[u8; 8]) -> Result<u32, GgufFault> {
    let (magic, version) = start.split_at(4);
    if magic != b"GGUF" {
        return Err(GgufFault::Foreign { looks_like: looks_like(start) });
    }
    match u32::from_le_bytes(version.try_into().expect("eight bytes less four")) {
        found @ (2 | 3) => Ok(found),
        found if matches!(found.swap_bytes(), 1..=3) => Err(GgufFault::BigEndian),
        found => Err(GgufFault::Version { found }),
    }
}

/// What a file that starts with `start` is instead of a GGUF.
fn looks_like(start: &[u8; 8]) -> &'static str {
    let text = start.trim_ascii_start();
    match start {
        b"version " => "this is a Git LFS pointer; fetch the file itself with `git lfs pull`",
        [0, 0, 0, 0, ..] => "it starts with zeros: an unfinished download",
        [b'P', b'K', 3, 4, ..] => "this is a zip archive (a PyTorch checkpoint or a wheel); convert or unpack it",
        [0xef, 0xbb, 0xbf, b'<', ..] => HTML,
        // safetensors: the length of a JSON text, which no other format keeps under 2^32 in eight bytes.
        [_, _, _, _, 0, 0, 0, 0] => "this may be a safetensors file; convert it to GGUF",
        // Magic numbers of the formats before GGUF, written as text or as a little-endian number.
        _ if [b"GGML", b"ggml", b"lmgg", b"ggmf", b"fmgg", b"ggjt", b"tjgg"].iter().any(|m| start.starts_with(*m)) => {
            "this is a GGML file from before GGUF; convert it again from its source"
        }
        _ if text.starts_with(b"<") => HTML,
        _ if text.starts_with(b"{") => "this is JSON",
        _ => "it does not start with the bytes \"GGUF\"",
    }
}

const HTML: &str = "this is an HTML page, perhaps an error page saved by a download";

fn check_count(what: &'static str, found: u64, limit: u64, possible: u64) -> Result<(), GgufFault> {
    let limit = limit.min(possible);
    if found > limit { Err(GgufFault::TooMany { what, found, limit }) } else { Ok(()) }
}

fn metadata(reader: &mut Reader<impl Read>, count: u64) -> Result<BTreeMap<String, Value>, GgufFault> {
    let mut metadata = BTreeMap::new();
    for index in 0..count {
        reader.set_subject(format!("key {index}"));
        let key = reader.name()?;
        reader.set_subject(format!("key {key:?}"));
        let value = reader.value()?;
        if metadata.contains_key(&key) {
            return Err(GgufFault::DuplicateKey { key });
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufFault> {
    let found = read_optional(metadata, "general.alignment")?.unwrap_or(ALIGNMENT_DEFAULT);
    if !found.is_power_of_two() || found > ALIGNMENT_MAX {
        return Err(GgufFault::Alignment { found });
    }
    Ok(found)
}

/// One tensor's entry; its offset is still relative to the body, and its part not yet known.
fn tensor(reader: &mut Reader<impl Read>) -> Result<TensorEntry, GgufFault> {
    let name = reader.name()?;
    reader.set_subject(format!("entry of tensor {name:?}"));
    let axes = reader.u32()?;
    if !(1..=4).contains(&axes) {
        return Err(GgufFault::Axes { tensor: name, found: axes });
    }
    let mut ne = Vec::new();
    for axis in 0..axes as usize {
        let found = reader.u64()?;
        if i64::try_from(found).is_err() || found == 0 {
            return Err(GgufFault::Dimension { tensor: name, axis, found });
        }
        ne.push(found);
    }
    let kind = GgmlType(reader.u32()?);
    let offset = reader.u64()?;
    let bytes = tensor_bytes(&name, &ne, kind)?;
    Ok(TensorEntry { name, ne, kind, part: 0, offset, bytes })
}

/// Length of a tensor; `None` where ggml's blocks of that type are unknown to us.
fn tensor_bytes(name: &str, ne: &[u64], kind: GgmlType) -> Result<Option<u64>, GgufFault> {
    let overflow = || GgufFault::SizeOverflow { tensor: name.to_owned() };
    let elements = ne.iter().try_fold(1u64, |product, &n| product.checked_mul(n)).ok_or_else(overflow)?;
    let Some((block_len, block_bytes)) = kind.block() else { return Ok(None) };
    if !ne[0].is_multiple_of(block_len) {
        return Err(GgufFault::PartialBlock {
            tensor: name.to_owned(),
            cols: ne[0],
            kind: kind.to_string(),
            block_len,
        });
    }
    (elements / block_len).checked_mul(block_bytes).ok_or_else(overflow).map(Some)
}

/// Makes the offset absolute, and checks that the tensor lies in the file.
fn place(tensor: &mut TensorEntry, body_start: u64, alignment: u64, file_bytes: u64) -> Result<(), GgufFault> {
    let name = || tensor.name.clone();
    if !tensor.offset.is_multiple_of(alignment) {
        return Err(GgufFault::Misaligned { tensor: name(), offset: tensor.offset, alignment });
    }
    let offset = body_start.checked_add(tensor.offset);
    let end = offset.and_then(|start| start.checked_add(tensor.bytes.unwrap_or(0)));
    match (offset, end) {
        (Some(offset), Some(end)) if end <= file_bytes => {
            tensor.offset = offset;
            Ok(())
        }
        (_, Some(need)) => Err(GgufFault::TensorBeyondEnd { tensor: name(), need, have: file_bytes }),
        (_, None) => Err(GgufFault::SizeOverflow { tensor: name() }),
    }
}

/// Refuses overlaps and counts the bytes that no tensor explains.
fn unused(tensors: &[TensorEntry], start: u64, alignment: u64, file_bytes: u64) -> Result<u64, GgufFault> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|t| t.offset);
    for pair in in_order.windows(2) {
        if pair[0].offset + pair[0].bytes.unwrap_or(0) > pair[1].offset {
            return Err(GgufFault::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    let Some(used) = tensors.iter().map(|t| Some(t.bytes?.next_multiple_of(alignment))).sum::<Option<u64>>() else {
        return Ok(0);
    };
    Ok(file_bytes.saturating_sub(start).saturating_sub(used))
}
