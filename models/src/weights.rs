//! Weights by byte range, from files that must stay as they were when the model was opened.

pub(crate) mod error;

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use self::error::WeightsError;
use crate::{
    family::{self, ModelError},
    gguf::{Gguf, Part},
    spec::{ModelSpec, TensorSpec},
};

/// A model whose weights can be read.
#[derive(Debug)]
pub struct ModelFile {
    gguf: Gguf,
    spec: ModelSpec,
    files: Vec<File>,
    watch: Option<HashWatch>,
}

/// Hears how far `ModelFile::hashes` is.
struct HashWatch(Box<dyn Fn(u64, u64) + Send + Sync>);

/// Tells models apart, cheaply: BLAKE3 of the headers, the file lengths and the first bytes of each tensor.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct ModelId(pub [u8; 32]);

impl ModelFile {
    /// Opens the model at `path`, with all its parts.
    ///
    /// # Errors
    /// Whatever makes the file, or the model in it, unusable.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let gguf = Gguf::open(path)?;
        let spec = family::spec(&gguf)?;
        let mut files = Vec::new();
        for part in gguf.parts() {
            let file = File::open(&part.path).map_err(|source| io_error(part, source))?;
            check_unchanged(&file, part)?;
            files.push(file);
        }
        Ok(Self { gguf, spec, files, watch: None })
    }

    /// Has `hashes` tell how many bytes are read, of how many, from whichever thread, about each megabyte and
    /// in order.
    pub fn watch_hashing(&mut self, watch: impl Fn(u64, u64) + Send + Sync + 'static) {
        self.watch = Some(HashWatch(Box::new(watch)));
    }

    /// The headers.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Fills `into` with the bytes of part `part` from `offset` on. Any thread may read, at any time.
    ///
    /// # Errors
    /// The range is outside the file, the file cannot be read, or it has changed since it was opened.
    pub fn read_range(&self, part: usize, offset: u64, into: &mut [u8]) -> Result<(), WeightsError> {
        let bytes = into.len() as u64;
        let outside = WeightsError::Outside { part, offset, bytes };
        let (Some(file), Some(of)) = (self.files.get(part), self.gguf.parts().get(part)) else { return Err(outside) };
        if offset.checked_add(bytes).is_none_or(|end| end > of.bytes) {
            return Err(outside);
        }
        let read = file.read_exact_at(into, offset);
        // Looked at after the read, so that what was read is known to be from before any change.
        check_unchanged(file, of)?;
        read.map_err(|source| io_error(of, source))
    }

    /// BLAKE3 of the bytes of each of `tensors`, in their order. Reads all of them on all CPUs: seconds for gigabytes.
    ///
    /// # Errors
    /// See `read_range`.
    pub fn hashes(&self, tensors: &[TensorSpec]) -> Result<Vec<[u8; 32]>, WeightsError> {
        let (total, done) = (tensors.iter().map(|tensor| tensor.bytes).sum(), Mutex::new(0));
        let advance = |bytes: u64| {
            if let Some(HashWatch(watch)) = &self.watch {
                // Told under the lock, so that all comes in order and the end comes last.
                let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                *done += bytes;
                watch(*done, total);
            }
        };
        let hash = |buffer: &mut Vec<u8>, tensor: &TensorSpec| {
            let mut hasher = blake3::Hasher::new();
            self.hash_range((&mut hasher, &advance), buffer, tensor.part, tensor.offset, tensor.bytes)?;
            Ok(hasher.finalize().into())
        };
        tensors.par_iter().map_init(|| vec![0; HASH_BYTES], hash).collect()
    }

    /// The model's id; reads some megabytes.
    ///
    /// # Errors
    /// See `read_range`.
    pub fn id(&self) -> Result<ModelId, WeightsError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; HASH_BYTES];
        for (index, part) in self.gguf.parts().iter().enumerate() {
            hasher.update(&part.bytes.to_le_bytes());
            self.hash_range((&mut hasher, &|_| {}), &mut buffer, index, 0, part.header_bytes)?;
        }
        // Headers alone would not tell two fine-tunings of one model apart.
        for tensor in &self.spec.tensors {
            let sample = tensor.bytes.min(SAMPLE_BYTES);
            self.hash_range((&mut hasher, &|_| {}), &mut buffer, tensor.part, tensor.offset, sample)?;
        }
        Ok(ModelId(hasher.finalize().into()))
    }

    /// Adds bytes to a hash, and tells of each piece of them.
    fn hash_range(
        &self,
        (hasher, advance): (&mut blake3::Hasher, &dyn Fn(u64)),
        buffer: &mut [u8],
        part: usize,
        offset: u64,
        bytes: u64,
    ) -> Result<(), WeightsError> {
        let end = offset.saturating_add(bytes);
        let mut at = offset;
        while at < end {
            let length = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            self.read_range(part, at, &mut buffer[..length])?;
            hasher.update_rayon(&buffer[..length]);
            at += length as u64;
            advance(length as u64);
        }
        Ok(())
    }
}

impl fmt::Debug for HashWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashWatch")
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

/// Whether the open file is still as its header was read.
fn check_unchanged(file: &File, part: &Part) -> Result<(), WeightsError> {
    let now = file.metadata().map_err(|source| io_error(part, source))?;
    let modified = now.modified().map_err(|source| io_error(part, source))?;
    if now.len() != part.bytes || Some(modified) != part.modified {
        return Err(WeightsError::Changed { path: part.path.clone() });
    }
    Ok(())
}

fn io_error(part: &Part, source: io::Error) -> WeightsError {
    WeightsError::Io { path: part.path.clone(), source }
}

/// Read at once: large enough for BLAKE3 to use its widest vectors.
const HASH_BYTES: usize = 1 << 20;
/// Bytes of each tensor that count for the model's id.
const SAMPLE_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, sync::Arc};

    use super::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");

    #[test]
    fn hashing_tells_how_far_it_is() {
        let mut model = ModelFile::open(TINY).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        model.watch_hashing(move |done, total| log.lock().unwrap().push((done, total)));
        let bytes = model.spec().tensors.iter().map(|tensor| tensor.bytes).sum();
        model.hashes(&model.spec().tensors).unwrap();
        let heard = heard.lock().unwrap();
        assert_eq!(heard.last(), Some(&(bytes, bytes)));
        assert!(heard.is_sorted());
        assert!(heard.len() >= model.spec().tensors.len() && heard.iter().all(|&(_, total)| total == bytes));
    }

    #[test]
    fn ranges_and_hashes_are_the_bytes_of_the_file() {
        let model = ModelFile::open(TINY).unwrap();
        let file = fs::read(TINY).unwrap();
        let tensors = &model.spec().tensors;
        for (tensor, hash) in tensors.iter().zip(model.hashes(tensors).unwrap()) {
            let (start, bytes) = (tensor.offset as usize, tensor.bytes as usize);
            let mut read = vec![0; bytes];
            model.read_range(tensor.part, tensor.offset, &mut read).unwrap();
            assert_eq!(read, file[start..start + bytes], "{}", tensor.name);
            assert_eq!(blake3::hash(&read), hash, "{}", tensor.name);
        }
        for (part, offset) in [(1, 0), (0, file.len() as u64), (0, u64::MAX)] {
            let error = model.read_range(part, offset, &mut [0]).unwrap_err();
            assert!(matches!(error, WeightsError::Outside { .. }), "{error}");
        }
    }

    #[test]
    fn the_id_follows_headers_and_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let id_of = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            ModelFile::open(&path).unwrap().id().unwrap()
        };
        let mut bytes = fs::read(TINY).unwrap();
        let id = ModelFile::open(TINY).unwrap().id().unwrap();
        assert_eq!(id_of(&bytes), id, "a copy is the same model");
        assert_eq!(id.to_string().len(), 64);
        let body = ModelFile::open(TINY).unwrap().spec().tensors[0].offset as usize;
        bytes[body] ^= 1;
        assert_ne!(id_of(&bytes), id, "other weights are another model");
        bytes[body] ^= 1;
        bytes.extend([0; 32]);
        assert_ne!(id_of(&bytes), id, "another length is another file");
    }

    #[test]
    fn a_file_that_changes_is_not_read_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::copy(TINY, &path).unwrap();
        let changed = |model: &ModelFile| {
            let tensor = &model.spec().tensors[1];
            let error = model.read_range(0, tensor.offset, &mut [0; 8]).unwrap_err();
            assert!(error.to_string().contains("model file changed"), "{error}");
        };
        let model = ModelFile::open(&path).unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        changed(&model);
        let model = ModelFile::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(20_000).unwrap();
        changed(&model);
    }
}
