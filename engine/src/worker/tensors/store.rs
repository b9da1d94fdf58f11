//! Tensors on this machine: a cache in which a file's name is the BLAKE3 of its bytes. Everything here blocks; the network
//! thread calls it on other threads.
//!
//! Nothing in the cache is trusted for its name: what a shard loads is checked byte by byte (`places.rs`).

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use blake3::{Hash, Hasher};
use qmesh_models::{bytes::ByteCount, files::free_bytes};
use tempfile::TempPath;
use thiserror::Error;

/// Disk space that is left alone, in bytes.
const SPARE_BYTES: u64 = 64 << 20;

/// The content-addressed cache: `CACHE/blobs/ab/<hex>`.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

/// A tensor on its way into the cache.
#[derive(Debug)]
pub(super) struct PartialTensor {
    hash: Hash,
    bytes: u64,
    blob: PathBuf,
    file: File,
    path: PartialPath,
    hasher: Hasher,
    have: u64,
}

/// Whether what was fetched is what was wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It is in the cache now.
    Kept,
    /// It was something else, and is gone.
    Wrong,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    /// A blob of the cache, or a model file.
    pub(super) path: PathBuf,
    /// Of its first byte.
    pub(super) offset: u64,
    /// What its bytes must be.
    pub(super) hash: Hash,
    /// Whose file it is.
    pub(super) owner: Owner,
}

/// Whose file a tensor lies in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Owner {
    /// The cache's: damaged blobs are deleted.
    Cache,
    /// The user's: only ever read.
    User,
}

/// The cache cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum StoreError {
    #[error("cannot {what} {}: {source}; choose another folder with --cache", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another process has had {} locked for {} s: wait for it, or stop it", path.display(), waited.as_secs())]
    Busy { path: PathBuf, waited: Duration },
    #[error(
        "{needed} of tensors are missing, {} has {free} free: make room, or choose another folder with --cache",
        path.display()
    )]
    Full { needed: ByteCount, free: ByteCount, path: PathBuf },
}

impl StoreError {
    /// Whether the disk, or the user's share of it, has no room.
    pub(super) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match self {
            Self::Full { .. } => true,
            Self::Busy { .. } => false,
            Self::Io { source, .. } => matches!(source.kind(), StorageFull | QuotaExceeded),
        }
    }
}

/// The name under which a part is written.
#[derive(Debug)]
enum PartialPath {
    /// Taken up by a later try; locked while it is written.
    Shared(PathBuf),
    /// Another process writes the shared one: this one is deleted if it does not succeed.
    Own(TempPath),
}

impl Store {
    /// The store in the folder `cache`, which is made where it is missing.
    pub(super) fn open(cache: &Path) -> Result<Self, StoreError> {
        let folder = cache.join("blobs");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        Ok(Self { folder })
    }

    /// Where a tensor lies if the cache has it.
    pub(super) fn find(&self, hash: Hash, bytes: u64) -> Option<Place> {
        let path = self.blob(hash);
        let there = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes);
        there.then_some(Place { path, offset: 0, hash, owner: Owner::Cache })
    }

    /// Notes that the tensor at `place` is used now: the time of its last change says when it was used last, since many
    /// systems do not keep the time of the last reading, and nobody changes a blob.
    pub(super) fn touch(&self, place: &Place) {
        let touched = File::open(&place.path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            // It may be deleted sooner than it should, and is fetched again then.
            tracing::debug!(path = %place.path.display(), %error, "cannot note that a tensor is used");
        }
    }

    /// The folder of all blobs.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Checks that `needed` bytes fit on the disk.
    pub(super) fn check_space(&self, needed: u64) -> Result<(), StoreError> {
        let free = free_bytes(&self.folder).map_err(failed("measure", &self.folder))?;
        if free >= needed.saturating_add(SPARE_BYTES) {
            return Ok(());
        }
        Err(StoreError::Full { needed: ByteCount(needed), free: ByteCount(free), path: self.folder.clone() })
    }

    /// Takes up what an earlier try for the tensor left, or begins anew.
    pub(super) fn resume(&self, hash: Hash, bytes: u64) -> Result<PartialTensor, StoreError> {
        let blob = self.blob(hash);
        let folder = blob.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
        let shared = blob.with_extension("part");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&shared);
        let file = open.map_err(failed("open", &shared))?;
        // Whoever held the lock before may have renamed the file that we have open: then the blob is there.
        let (file, path) = match file.try_lock() {
            Ok(()) if self.find(hash, bytes).is_none() => (file, PartialPath::Shared(shared)),
            Ok(()) | Err(TryLockError::WouldBlock) => {
                let own = tempfile::Builder::new().suffix(".part").tempfile_in(folder);
                let (file, path) = own.map_err(failed("write in", folder))?.into_parts();
                (file, PartialPath::Own(path))
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &shared)(source)),
        };
        let mut part = PartialTensor { hash, bytes, blob, file, path, hasher: Hasher::new(), have: 0 };
        part.take_up().map_err(failed("read", part.path()))?;
        Ok(part)
    }

    fn blob(&self, hash: Hash) -> PathBuf {
        let name = hash.to_hex();
        self.folder.join(&name[..2]).join(name.as_str())
    }
}

impl PartialTensor {
    /// Bytes that are there, from the first on.
    pub(super) fn have(&self) -> u64 {
        self.have
    }

    /// Adds bytes at the end; those beyond the tensor's length are refused.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), StoreError> {
        let length = block.len() as u64;
        if length > self.bytes - self.have {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the tensor has");
            return Err(failed("write", self.path())(source));
        }
        self.file.write_all(block).map_err(failed("write", self.path()))?;
        self.hasher.update(block);
        self.have += length;
        Ok(())
    }

    /// Gives the whole its name, or throws away what is not the tensor.
    pub(super) fn finish(self) -> Result<Verdict, StoreError> {
        let right = self.have == self.bytes && self.hasher.finalize() == self.hash;
        if !right {
            // Emptied, not deleted: another process may wait for the lock of this very file.
            self.file.set_len(0).map_err(failed("empty", self.path()))?;
            return Ok(Verdict::Wrong);
        }
        // That it is on the disk is not waited for: what a machine that loses its power leaves half-written is found when it is
        // loaded, as every byte is checked then, and fetched again.
        match self.path {
            PartialPath::Shared(path) => fs::rename(&path, &self.blob).map_err(failed("rename", &path))?,
            PartialPath::Own(path) => {
                path.persist(&self.blob).map_err(|error| failed("rename", &error.path)(error.error))?
            }
        }
        Ok(Verdict::Kept)
    }

    fn path(&self) -> &Path {
        match &self.path {
            PartialPath::Shared(path) => path,
            PartialPath::Own(path) => path,
        }
    }

    fn take_up(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.bytes {
            self.file.set_len(0)?;
        }
        self.hasher.update_reader(Read::by_ref(&mut self.file))?;
        self.have = self.file.seek(SeekFrom::End(0))?;
        Ok(())
    }
}

impl Place {
    /// Whether the bytes there are the tensor's; what cannot be read is not.
    pub(super) fn holds(&self, bytes: u64) -> bool {
        hash_of(&self.path, self.offset, bytes).is_ok_and(|found| found == self.hash)
    }

    /// What is there is something else: the next fetch gets it anew. Where that cannot be, reading it fails again.
    pub(super) fn give_up(&self) {
        match self.owner {
            Owner::Cache => drop(fs::remove_file(&self.path)),
            Owner::User => {}
        }
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// Deletes a file; that it is not there is no error.
pub(super) fn delete(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The hash of at most so many bytes of a file, from `offset` on.
pub(super) fn hash_of(path: &Path, offset: u64, bytes: u64) -> io::Result<Hash> {
    hash_part(&File::open(path)?, offset, bytes)
}

/// As [`hash_of`], of an open file.
pub(super) fn hash_part(mut file: &File, offset: u64, bytes: u64) -> io::Result<Hash> {
    file.seek(SeekFrom::Start(offset))?;
    let mut hasher = Hasher::new();
    hasher.update_reader(file.take(bytes))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"sixteen bytes...";

    fn keep(store: &Store, body: &[u8]) -> Place {
        let (hash, bytes) = (blake3::hash(body), body.len() as u64);
        let mut part = store.resume(hash, bytes).unwrap();
        let have = usize::try_from(part.have()).unwrap();
        part.append(&body[have..]).unwrap();
        assert_eq!(part.finish().unwrap(), Verdict::Kept);
        store.find(hash, bytes).unwrap()
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().flat_map(|entry| fs::read_dir(entry.unwrap().path()).unwrap()).count()
    }

    #[test]
    fn a_part_is_taken_up_and_only_the_right_bytes_get_the_name() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::open(cache.path()).unwrap();
        let (hash, bytes) = (blake3::hash(BODY), BODY.len() as u64);
        store.resume(hash, bytes).unwrap().append(&BODY[..5]).unwrap();
        assert_eq!(store.resume(hash, bytes).unwrap().have(), 5);
        assert!(store.find(hash, bytes).is_none());
        keep(&store, BODY);

        let other = blake3::hash(b"something else..");
        let mut part = store.resume(other, bytes).unwrap();
        part.append(BODY).unwrap();
        assert!(matches!(part.append(b"x"), Err(StoreError::Io { .. })));
        assert_eq!(part.finish().unwrap(), Verdict::Wrong);
        assert!(store.find(other, bytes).is_none());
        assert_eq!(store.resume(other, bytes).unwrap().have(), 0);
        let blob = store.find(hash, bytes).unwrap().path;
        assert_eq!(
            blob.strip_prefix(cache.path()).unwrap(),
            Path::new("blobs").join(&hash.to_hex()[..2]).join(hash.to_hex().as_str())
        );
    }

    #[test]
    fn two_writers_of_one_tensor_do_not_meet() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::open(cache.path()).unwrap();
        let (hash, bytes) = (blake3::hash(BODY), BODY.len() as u64);
        let mut first = store.resume(hash, bytes).unwrap();
        first.append(&BODY[..3]).unwrap();
        let mut second = store.resume(hash, bytes).unwrap();
        assert_eq!(second.have(), 0);
        second.append(BODY).unwrap();
        first.append(&BODY[3..]).unwrap();
        assert_eq!((second.finish().unwrap(), first.finish().unwrap()), (Verdict::Kept, Verdict::Kept));
        assert_eq!(files(&store.folder), 1);
        assert!(store.find(hash, bytes).unwrap().holds(bytes));
    }
}
