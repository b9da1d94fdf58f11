//! GGUF files: metadata and where the tensors lie. Reads headers only, bounded, and never panics on a bad file.

mod error;
mod ggml_type;
mod header;
mod limits;
mod part;
mod reader;
mod split;
#[cfg(test)]
mod tests;
mod value;
mod write;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::SystemTime,
};

pub use self::{
    error::{GgufError, GgufFault, KeyError, OptionalKey},
    ggml_type::GgmlType,
    limits::HEADER_BYTES_MAX,
    part::PartHeader,
    value::{Array, ByteStrings, Numbers, Strings, Value},
    write::{Declared, GgufWriter},
};

/// The headers of a GGUF file, or of all parts of a split one.
#[derive(Clone, Debug)]
pub struct Gguf {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    parts: Vec<Part>,
    unused_bytes: u64,
}

/// One tensor: its shape, how its elements are stored and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Elements along each of its 1 to 4 dimensions, the innermost first; none is 0.
    pub ne: Vec<u64>,
    /// ggml's element type, known to us or not.
    pub kind: GgmlType,
    /// Which of `Gguf::parts` holds it.
    pub part: usize,
    /// Absolute offset of its first byte in that file.
    pub offset: u64,
    /// Length in bytes, inside the file; `None` where the blocks of its type are unknown to us.
    pub bytes: Option<u64>,
}

/// One file of a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Part {
    /// Where it is, an address where it is not on this machine; empty for bytes from memory.
    pub path: PathBuf,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Length of its header in bytes: everything before the first tensor.
    pub header_bytes: u64,
    /// When it was last changed; `None` for bytes from memory or another machine.
    pub modified: Option<SystemTime>,
}

impl Gguf {
    /// Reads the headers of the file at `path`, and of its sibling parts where it is one part of a split model.
    ///
    /// # Errors
    /// Names the file at fault and what is wrong with it. Never blocks: what is no regular file is refused unopened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let parts = split::read(path)?;
        let gguf = Self::join(parts).map_err(|fault| GgufError { path: path.to_owned(), fault })?;
        if gguf.unused_bytes > 0 {
            tracing::warn!(path = %path.display(), bytes = gguf.unused_bytes, "file holds bytes that no tensor uses");
        }
        Ok(gguf)
    }

    /// Parses `bytes`, the start of a file that is `file_bytes` long.
    ///
    /// # Errors
    /// What is wrong with the bytes, or that they end before the header does ([`GgufFault::MoreNeeded`], where the file goes
    /// on). A part of a split model is refused.
    pub fn parse(bytes: &[u8], file_bytes: u64) -> Result<Self, GgufFault> {
        let PartHeader { header, part } = PartHeader::parse(PathBuf::new(), bytes, file_bytes)?;
        Self::join(vec![(header, part)])
    }

    /// One model from the headers of its parts, in order: what is known of files that are not on this machine.
    ///
    /// # Errors
    /// Names the part that does not belong here, or is not the whole of a model by itself.
    pub fn from_parts(parts: Vec<PartHeader>) -> Result<Self, GgufError> {
        split::check_order(&parts)?;
        let path = parts.first().map(|first| first.part.path.clone()).unwrap_or_default();
        let headers = parts.into_iter().map(|PartHeader { header, part }| (header, part)).collect();
        Self::join(headers).map_err(|fault| GgufError { path, fault })
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files, in order; one unless the model is split.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Every tensor, in the order of the headers. A file that holds only a vocabulary has none.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }

    /// Bytes after the headers that belong to no tensor, beyond what alignment explains: harmless, but odd.
    pub fn unused_bytes(&self) -> u64 {
        self.unused_bytes
    }

    /// Every key with its value, sorted by key.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, of whatever type.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The text of `key`. For a key that may be missing: `gguf.text(key).optional()?`, and so for every reader below.
    ///
    /// # Errors
    /// The key is missing or of another type; so for every reader below.
    pub fn text(&self, key: &str) -> Result<&str, KeyError> {
        self.read(key, "a text", Value::text)
    }

    /// The text of `key` with U+FFFD for what is not UTF-8: for a text that is only looked at.
    pub fn text_lossy(&self, key: &str) -> Result<Cow<'_, str>, KeyError> {
        self.read(key, "a text", Value::text_lossy)
    }

    /// The unsigned integer of `key`, of any width; a signed one counts where it is not negative.
    pub fn unsigned(&self, key: &str) -> Result<u64, KeyError> {
        self.read(key, "an unsigned integer", Value::unsigned)
    }

    /// The signed integer of `key`, of any width.
    pub fn signed(&self, key: &str) -> Result<i64, KeyError> {
        self.read(key, "a signed integer", Value::signed)
    }

    /// The float of `key`, rounded to 32 bits; may be infinite or NaN.
    pub fn float(&self, key: &str) -> Result<f32, KeyError> {
        self.read(key, "a float", |value| value.float().map(|float| float as f32))
    }

    /// The boolean of `key`.
    pub fn boolean(&self, key: &str) -> Result<bool, KeyError> {
        self.read(key, "a boolean", Value::boolean)
    }

    /// The array of strings of `key`.
    pub fn strings(&self, key: &str) -> Result<&Strings, KeyError> {
        self.read(key, "an array of strings", Value::strings)
    }

    /// The array of floats of `key`, rounded to 32 bits.
    pub fn floats(&self, key: &str) -> Result<Vec<f32>, KeyError> {
        self.numbers(key, "an array of floats", |value| value.float().map(|float| float as f32))
    }

    /// The array of integers of `key`, each of which fits 32 bits unsigned.
    pub fn unsigneds(&self, key: &str) -> Result<Vec<u32>, KeyError> {
        self.numbers(key, "an array of unsigned integers", |value| u32::try_from(value.unsigned()?).ok())
    }

    /// The array of integers of `key`, each of which fits 32 bits signed.
    pub fn signeds(&self, key: &str) -> Result<Vec<i32>, KeyError> {
        self.numbers(key, "an array of signed integers", |value| i32::try_from(value.signed()?).ok())
    }

    /// The array of booleans of `key`.
    pub fn booleans(&self, key: &str) -> Result<Vec<bool>, KeyError> {
        self.numbers(key, "an array of booleans", Value::boolean)
    }

    fn numbers<T>(&self, key: &str, expected: &'static str, pick: fn(&Value) -> Option<T>) -> Result<Vec<T>, KeyError> {
        self.read(key, expected, |value| value.numbers()?.iter().map(|number| pick(&number)).collect())
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, KeyError> {
        header::read(&self.metadata, key, expected, pick)
    }

    /// One model from the headers of its parts, of which the first has the metadata.
    fn join(headers: Vec<(header::Header, Part)>) -> Result<Self, GgufFault> {
        let mut model = Self {
            version: 0,
            metadata: BTreeMap::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            parts: Vec::new(),
            unused_bytes: 0,
        };
        for (index, (header, part)) in headers.into_iter().enumerate() {
            if model.parts.is_empty() {
                (model.version, model.metadata) = (header.version, header.metadata);
            }
            model.tensors.extend(header.tensors.into_iter().map(|tensor| TensorEntry { part: index, ..tensor }));
            model.parts.push(part);
            model.unused_bytes += header.unused_bytes;
        }
        for (index, tensor) in model.tensors.iter().enumerate() {
            if model.by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(GgufFault::DuplicateTensor { tensor: tensor.name.clone() });
            }
        }
        split::check(&model)?;
        Ok(model)
    }
}
