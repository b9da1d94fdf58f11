//! What the cache holds, for those who look after it: lists blobs, deletes them, and reads them all again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use blake3::Hash;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{
    store::{Store, StoreError, delete, failed, hash_of},
    uses::{Tensors, UseLock},
};

/// The tensors that workers of this machine keep in a folder. Everything here blocks.
#[derive(Clone, Debug)]
pub struct TensorCache {
    cache: PathBuf,
    store: Store,
}

/// A file of the cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Blob {
    /// What its bytes are, or shall be.
    pub hash: Hash,
    /// Bytes that are there.
    pub bytes: u64,
    /// When a shard was last loaded from it, or when it was written.
    pub last_used: SystemTime,
    /// Whether all bytes are there.
    pub state: BlobState,
    /// Whether somebody needs it.
    pub usage: Usage,
    pub(super) path: PathBuf,
}

/// Whether all bytes of a tensor are there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlobState {
    /// They are.
    Whole,
    /// It is being fetched, or a fetch was interrupted and will be taken up.
    Partial,
}

/// Whether a blob is needed at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// A running worker has it loaded, or is about to.
    InUse,
    /// It only waits for the next shard that needs it.
    Idle,
}

/// Which blobs are meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Selection {
    /// All.
    All,
    /// Those whose hash begins with one of these, in lower-case hex.
    Prefixes(Vec<String>),
    /// Those that were last used before this.
    UnusedSince(SystemTime),
}

/// What came of a deletion.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removal {
    /// Gone.
    pub removed: Vec<Blob>,
    /// Selected, but in use.
    pub kept: Vec<Blob>,
}

/// What happens to a blob whose bytes are wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnDamage {
    /// It is deleted, and fetched anew when it is needed.
    Delete,
    /// It is only named. A worker that loads from it will notice, and delete it.
    Report,
}

/// What came of reading every whole blob.
#[derive(Debug, Default)]
pub struct Verification {
    /// Blobs that are what they should be.
    pub sound: usize,
    /// Their bytes.
    pub sound_bytes: u64,
    /// Blobs that are not, and why, in the order of their hashes.
    pub damaged: Vec<(Blob, Damage)>,
}

/// What is wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It holds something else.
    #[error("its bytes have the hash {found}")]
    Changed {
        /// Of what it holds.
        found: Hash,
    },
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
}

impl Selection {
    /// Whether it means `blob`.
    pub fn includes(&self, blob: &Blob) -> bool {
        match self {
            Self::All => true,
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| blob.hash.to_hex().starts_with(prefix)),
            Self::UnusedSince(time) => blob.last_used < *time,
        }
    }
}

impl TensorCache {
    /// The tensors in the folder `cache`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder cannot be made; so for all methods where a folder cannot be read or written.
    pub fn open(cache: &Path) -> Result<Self, StoreError> {
        Ok(Self { cache: cache.to_owned(), store: Store::open(cache)? })
    }

    /// Everything that is there, the least recently used first.
    ///
    /// # Errors
    /// See `open`.
    pub fn blobs(&self) -> Result<Vec<Blob>, StoreError> {
        let used = UseLock::acquire(&self.cache)?.in_use()?;
        list(&self.store, &used)
    }

    /// Deletes what is selected, except what a running worker uses.
    ///
    /// # Errors
    /// See `open`; what was deleted before stays so.
    pub fn remove(&self, selection: &Selection) -> Result<Removal, StoreError> {
        let lock = UseLock::acquire(&self.cache)?;
        let blobs = list(&self.store, &lock.in_use()?)?;
        let selected = blobs.into_iter().filter(|blob| selection.includes(blob));
        let (kept, removed): (Vec<_>, _) = selected.partition(|blob| blob.usage == Usage::InUse);
        for blob in &removed {
            delete(&blob.path)?;
        }
        Ok(Removal { removed, kept })
    }

    /// Reads every whole blob, several at a time; `progress` is told of the bytes of each.
    ///
    /// # Errors
    /// See `open`; that a blob cannot be read is no error but damage.
    pub fn verify(&self, on_damage: OnDamage, progress: impl Fn(u64) + Sync) -> Result<Verification, StoreError> {
        let blobs = self.blobs()?.into_iter().filter(|blob| blob.state == BlobState::Whole).collect::<Vec<_>>();
        let checked: Vec<_> = blobs
            .into_par_iter()
            .map(|blob| {
                let damage = damage(&blob);
                progress(blob.bytes);
                (blob, damage)
            })
            .collect();
        let mut found = Verification::default();
        for (blob, damage) in checked {
            match damage {
                None => {
                    found.sound += 1;
                    found.sound_bytes += blob.bytes;
                }
                // Somebody deleted it meanwhile.
                Some(Damage::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Some(damage) => found.damaged.push((blob, damage)),
            }
        }
        found.damaged.sort_by_key(|(blob, _)| *blob.hash.as_bytes());
        match on_damage {
            OnDamage::Report => {}
            OnDamage::Delete => found.damaged.iter().try_for_each(|(blob, _)| delete(&blob.path))?,
        }
        Ok(found)
    }
}

/// Everything in the store, the least recently used first.
pub(super) fn list(store: &Store, used: &Tensors) -> Result<Vec<Blob>, StoreError> {
    let mut blobs = Vec::new();
    for folder in fs::read_dir(store.folder()).map_err(failed("read", store.folder()))? {
        let folder = folder.map_err(failed("read", store.folder()))?;
        if !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(folder.path()).map_err(failed("read", &folder.path()))? {
            let entry = entry.map_err(failed("read", &folder.path()))?;
            blobs.extend(blob(entry.path(), used));
        }
    }
    blobs.sort_by_key(|blob| (blob.last_used, *blob.hash.as_bytes()));
    Ok(blobs)
}

/// The blob at `path`; `None` for what is none, or has just gone.
fn blob(path: PathBuf, used: &Tensors) -> Option<Blob> {
    let name = path.file_name()?.to_str()?;
    let (hex, state) = match name.strip_suffix(".part") {
        Some(hex) => (hex, BlobState::Partial),
        None => (name, BlobState::Whole),
    };
    let hash = Hash::from_hex(hex).ok()?;
    let file = fs::symlink_metadata(&path).ok().filter(|file| file.is_file())?;
    let usage = if used.contains_key(&hash) { Usage::InUse } else { Usage::Idle };
    Some(Blob { hash, bytes: file.len(), last_used: file.modified().ok()?, state, usage, path })
}

fn damage(blob: &Blob) -> Option<Damage> {
    match hash_of(&blob.path, 0, u64::MAX) {
        Ok(found) if found == blob.hash => None,
        Ok(found) => Some(Damage::Changed { found }),
        Err(error) => Some(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        sync::atomic::{AtomicU64, Ordering},
        time::Duration,
    };

    use super::*;

    /// A cache with these tensors, the first one unused for longest.
    fn cache(bodies: &[&str]) -> (tempfile::TempDir, TensorCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = TensorCache::open(folder.path()).unwrap();
        for (body, age) in bodies.iter().zip((1..=bodies.len() as u64).rev()) {
            let path = path(&cache, body);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, body).unwrap();
            File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(86_400 * age)).unwrap();
        }
        (folder, cache)
    }

    fn path(cache: &TensorCache, body: &str) -> PathBuf {
        let hex = blake3::hash(body.as_bytes()).to_hex();
        cache.store.folder().join(&hex[..2]).join(hex.as_str())
    }

    fn hashes(blobs: &[Blob]) -> Vec<Hash> {
        blobs.iter().map(|blob| blob.hash).collect()
    }

    fn hash(body: &str) -> Hash {
        blake3::hash(body.as_bytes())
    }

    #[test]
    fn blobs_are_listed_by_last_use_and_by_whether_they_are_needed() {
        let (folder, cache) = cache(&["old", "middle", "new"]);
        let stranger = path(&cache, "old").with_file_name("README");
        fs::write(stranger, "not a blob").unwrap();
        fs::rename(path(&cache, "middle"), path(&cache, "middle").with_extension("part")).unwrap();
        let used = Tensors::from([(hash("new"), 3)]);
        let _use = UseLock::acquire(folder.path()).unwrap().declare(&used).unwrap();
        let blobs = cache.blobs().unwrap();
        assert_eq!(hashes(&blobs), [hash("old"), hash("middle"), hash("new")]);
        assert_eq!(blobs.iter().map(|blob| blob.bytes).collect::<Vec<_>>(), [3, 6, 3]);
        assert_eq!(
            blobs.iter().map(|blob| (blob.state, blob.usage)).collect::<Vec<_>>(),
            [(BlobState::Whole, Usage::Idle), (BlobState::Partial, Usage::Idle), (BlobState::Whole, Usage::InUse)]
        );
    }

    #[test]
    fn what_is_selected_goes_unless_it_is_in_use() {
        let (folder, cache) = cache(&["old", "middle", "new"]);
        let prefix = hash("middle").to_hex()[..8].to_owned();
        let removal = cache.remove(&Selection::Prefixes(vec![prefix, "ffffffffffffffff".into()])).unwrap();
        assert_eq!((hashes(&removal.removed), removal.kept.len()), (vec![hash("middle")], 0));
        let two_days = SystemTime::now() - Duration::from_secs(2 * 86_400);
        assert_eq!(hashes(&cache.remove(&Selection::UnusedSince(two_days)).unwrap().removed), [hash("old")]);

        let held = UseLock::acquire(folder.path()).unwrap().declare(&Tensors::from([(hash("new"), 3)])).unwrap();
        let removal = cache.remove(&Selection::All).unwrap();
        assert_eq!((removal.removed.len(), hashes(&removal.kept)), (0, vec![hash("new")]));
        drop(held);
        assert_eq!(hashes(&cache.remove(&Selection::All).unwrap().removed), [hash("new")]);
        assert_eq!(cache.blobs().unwrap(), []);
    }

    #[test]
    fn damage_is_found_and_deleted_or_reported() {
        let (_folder, cache) = cache(&["old", "middle", "new"]);
        fs::write(path(&cache, "middle"), "muddle").unwrap();
        fs::create_dir(path(&cache, "new").with_file_name("f".repeat(64))).unwrap();
        let read = AtomicU64::new(0);
        let count = |bytes| {
            read.fetch_add(bytes, Ordering::Relaxed);
        };
        let verify = |on_damage| cache.verify(on_damage, count).unwrap();
        let found = verify(OnDamage::Report);
        assert_eq!((found.sound, found.sound_bytes, read.load(Ordering::Relaxed)), (2, 6, 12));
        let [(blob, Damage::Changed { found })] = &found.damaged[..] else { panic!("{:?}", found.damaged) };
        assert_eq!((blob.hash, *found), (hash("middle"), hash("muddle")));
        assert!(blob.path.exists());
        assert_eq!(verify(OnDamage::Delete).damaged.len(), 1);
        assert!(!path(&cache, "middle").exists());
        assert_eq!(verify(OnDamage::Delete).damaged.len(), 0);
    }
}
