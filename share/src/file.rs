//! A file that comes in chunks, in any order, each of which is known before it comes.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rayon::prelude::*;

use crate::{
    error::{ShareError, in_file},
    manifest::{Manifest, SharedFile},
};

/// A file of a model, of which some chunks are there. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PartialFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of: SharedFile,
    id: [u8; 32],
    chunk_bytes: u64,
    path: PathBuf,
    file: File,
    here: Vec<AtomicBool>,
}

impl PartialFile {
    /// Opens what is at `path`, or makes it, and hashes all of it on all CPUs: chunks that are right are there.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, manifest: &Manifest, of: &SharedFile) -> Result<Self, ShareError> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open.map_err(in_file(path))?;
        let length = file.metadata().map_err(in_file(path))?.len();
        let opened = Self::over(path, file, manifest, of, false);
        let Inner { here, of, .. } = &*opened.0;
        let check = |buffer: &mut Vec<u8>, index: usize| {
            let (at, bytes) = opened.place(index);
            if at + bytes <= length {
                let piece = &mut buffer[..bytes as usize];
                opened.0.file.read_exact_at(piece, at).map_err(in_file(path))?;
                here[index].store(of.chunks[index] == *blake3::hash(piece).as_bytes(), Ordering::Relaxed);
            }
            Ok(())
        };
        let room = || vec![0; manifest.chunk_bytes as usize];
        (0..here.len()).into_par_iter().map_init(room, check).collect::<Result<(), ShareError>>()?;
        Ok(opened)
    }

    /// A file that is whole: its manifest was made of it.
    ///
    /// # Errors
    /// It cannot be opened, or has another length now.
    pub fn whole(path: &Path, manifest: &Manifest, of: &SharedFile) -> Result<Self, ShareError> {
        let file = File::open(path).map_err(in_file(path))?;
        if file.metadata().map_err(in_file(path))?.len() != of.bytes {
            let source = std::io::Error::other("the file has changed since its manifest was made");
            return Err(in_file(path)(source));
        }
        Ok(Self::over(path, file, manifest, of, true))
    }

    fn over(path: &Path, file: File, manifest: &Manifest, of: &SharedFile, whole: bool) -> Self {
        let here = of.chunks.iter().map(|_| AtomicBool::new(whole)).collect();
        let (of, id, chunk_bytes, path) = (of.clone(), of.id(), manifest.chunk_bytes, path.to_owned());
        Self(Arc::new(Inner { of, id, chunk_bytes, path, file, here }))
    }

    /// What it is to become.
    pub fn of(&self) -> &SharedFile {
        &self.0.of
    }

    /// What ranges of it are asked for by.
    pub(crate) fn id(&self) -> [u8; 32] {
        self.0.id
    }

    /// Where a chunk lies, and its bytes.
    pub(crate) fn place(&self, index: usize) -> (u64, u64) {
        let at = index as u64 * self.0.chunk_bytes;
        (at, (self.0.of.bytes - at).min(self.0.chunk_bytes))
    }

    /// Whether a chunk is there.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.0.here.get(index).is_some_and(|here| here.load(Ordering::Relaxed))
    }

    /// Whether all bytes of a range are there.
    pub(crate) fn has_range(&self, offset: u64, bytes: u64) -> bool {
        let Some(end) = offset.checked_add(bytes).filter(|&end| end <= self.0.of.bytes && bytes > 0) else {
            return false;
        };
        (offset / self.0.chunk_bytes..end.div_ceil(self.0.chunk_bytes)).all(|index| self.has(index as usize))
    }

    /// Bytes of the chunks that are there.
    pub fn bytes_here(&self) -> u64 {
        (0..self.0.here.len()).filter(|&index| self.has(index)).map(|index| self.place(index).1).sum()
    }

    /// Keeps a chunk, if it is the right one. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn keep(&self, index: usize, bytes: &[u8]) -> Result<Kept, ShareError> {
        if self.0.of.chunks[index] != *blake3::hash(bytes).as_bytes() {
            return Ok(Kept::Wrong);
        }
        self.0.file.write_all_at(bytes, self.place(index).0).map_err(in_file(&self.0.path))?;
        self.0.here[index].store(true, Ordering::Relaxed);
        Ok(Kept::Right)
    }

    /// Reads what is there. Blocks.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), ShareError> {
        self.0.file.read_exact_at(into, offset).map_err(in_file(&self.0.path))
    }

    /// Makes what is there survive the machine, and gives it its final name. It can still be read from here. Blocks.
    ///
    /// # Errors
    /// The system's.
    pub fn finish(&self, target: &Path) -> Result<(), ShareError> {
        let Inner { file, of, path, .. } = &*self.0;
        file.set_len(of.bytes).and_then(|()| file.sync_all()).map_err(in_file(path))?;
        fs::rename(path, target).map_err(in_file(path))?;
        // The rename is durable once its folder is; a file system that cannot sync folders loses at most this pull.
        let _ = target.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all()));
        Ok(())
    }
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kept {
    /// It is there now.
    Right,
    /// Its hash is another one; nothing was written.
    Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_in_any_order_and_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let (source, part, target) =
            (folder.path().join("m.gguf"), folder.path().join("part"), folder.path().join("t"));
        let content: Vec<u8> = (0..(2 << 20) + 9_u32).map(|i| (i % 253) as u8).collect();
        fs::write(&source, &content).unwrap();
        let manifest = Manifest::of("m", None, &[&source]).unwrap();
        let of = &manifest.files[0];
        let file = PartialFile::open(&part, &manifest, of).unwrap();
        assert_eq!(file.keep(2, &content[2 << 20..]).unwrap(), Kept::Right);
        assert_eq!(file.keep(0, &content[1 << 20..2 << 20]).unwrap(), Kept::Wrong);
        assert_eq!((file.bytes_here(), file.has(0), file.has(2)), (9, false, true));
        drop(file);

        let file = PartialFile::open(&part, &manifest, of).unwrap();
        assert_eq!(file.bytes_here(), 9, "what was right is still there");
        assert!(file.has_range(2 << 20, 9) && !file.has_range((2 << 20) - 1, 2) && !file.has_range(2 << 20, 10));
        assert!(!file.has_range(2 << 20, 0) && !file.has_range(u64::MAX, 2));
        for index in [1, 0] {
            assert_eq!(file.keep(index, &content[index << 20..(index + 1) << 20]).unwrap(), Kept::Right);
        }
        file.finish(&target).unwrap();
        assert!(fs::read(&target).unwrap() == content && !part.exists());
        PartialFile::whole(&target, &manifest, of).unwrap();
        fs::write(&target, [1]).unwrap();
        assert!(PartialFile::whole(&target, &manifest, of).is_err());
    }
}
