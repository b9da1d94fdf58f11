//! Room in the cache for a shard's tensors, where the user has set a limit: what was not used for longest goes first, and
//! never what a shard needs that is loaded or being loaded.

use std::path::Path;

use qmesh_models::bytes::ByteCount;
use thiserror::Error;

use super::{
    inventory::{Blob, Usage, list},
    store::{Store, StoreError, delete},
    uses::{Tensors, Use, UseLock},
};

/// Why the cache has no room for a shard.
#[derive(Debug, Error)]
pub(super) enum RoomError {
    #[error(
        "the tensors of this shard are {needed}, --cache-size allows {limit}: raise it to {needed} at least, or add \
         workers, so that each has fewer layers"
    )]
    ShardTooLarge { needed: ByteCount, limit: ByteCount },
    #[error(
        "the tensors of this shard and of those that are loaded beside it are {needed}, --cache-size allows {limit}: \
         raise it to {needed} at least"
    )]
    InUse { needed: ByteCount, limit: ByteCount },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Declares that a shard uses `wanted`, which shall be in the cache, and makes room for what is not there yet.
pub(super) fn reserve(
    cache: &Path,
    store: &Store,
    wanted: &Tensors,
    limit: Option<ByteCount>,
) -> Result<Use, RoomError> {
    let lock = UseLock::acquire(cache)?;
    let declared = lock.declare(wanted)?;
    if let Some(limit) = limit {
        let used = lock.in_use()?;
        let blobs = list(store, &used)?;
        for blob in leaving(&blobs, wanted, &used, limit)? {
            tracing::info!(hash = %blob.hash, bytes = blob.bytes, "deleted from the cache to make room");
            delete(&blob.path)?;
        }
    }
    Ok(declared)
}

/// Which of `blobs`, the least recently used first, must go so that all of `used` fits, of which `wanted` is a part.
fn leaving<'a>(
    blobs: &'a [Blob],
    wanted: &Tensors,
    used: &Tensors,
    limit: ByteCount,
) -> Result<Vec<&'a Blob>, RoomError> {
    let total = |tensors: &Tensors| ByteCount(tensors.values().fold(0, |sum, &bytes| sum.saturating_add(bytes)));
    if total(wanted) > limit {
        return Err(RoomError::ShardTooLarge { needed: total(wanted), limit });
    }
    // Also what others have declared and is on its way: they count on it.
    let needed = total(used);
    if needed > limit {
        return Err(RoomError::InUse { needed, limit });
    }
    let idle: Vec<_> = blobs.iter().filter(|blob| blob.usage == Usage::Idle).collect();
    let mut held = idle.iter().fold(needed.0, |sum, blob| sum.saturating_add(blob.bytes));
    let goes = |blob: &&Blob| {
        let goes = held > limit.0;
        held = held.saturating_sub(blob.bytes);
        goes
    };
    Ok(idle.into_iter().take_while(goes).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tensors(sizes: &[(u8, u64)]) -> Tensors {
        sizes.iter().map(|&(name, bytes)| (blake3::hash(&[name]), bytes)).collect()
    }

    struct Bench {
        cache: tempfile::TempDir,
        store: Store,
    }

    impl Bench {
        fn new() -> Self {
            let cache = tempfile::tempdir().unwrap();
            Self { store: Store::open(cache.path()).unwrap(), cache }
        }

        /// Puts a blob of so many bytes there, last used so many days ago.
        fn put(&self, name: u8, bytes: u64, days: u64) {
            let hex = blake3::hash(&[name]).to_hex();
            let folder = self.store.folder().join(&hex[..2]);
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(hex.as_str());
            fs::write(&path, vec![0_u8; usize::try_from(bytes).unwrap()]).unwrap();
            let age = std::time::Duration::from_secs(days * 86_400);
            fs::File::open(path).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
        }

        fn reserve(&self, wanted: &[(u8, u64)], limit: Option<u64>) -> Result<Use, RoomError> {
            reserve(self.cache.path(), &self.store, &tensors(wanted), limit.map(ByteCount))
        }

        /// Those of the names that are there.
        fn there(&self, names: &[u8]) -> Vec<u8> {
            let blobs = list(&self.store, &Tensors::new()).unwrap();
            names.iter().copied().filter(|&name| blobs.iter().any(|blob| blob.hash == blake3::hash(&[name]))).collect()
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_no_more_than_must() {
        let bench = Bench::new();
        for (name, days) in [(1, 1), (2, 3), (3, 2), (4, 4)] {
            bench.put(name, 100, days);
        }
        drop(bench.reserve(&[(9, 1000)], None).unwrap());
        drop(bench.reserve(&[(9, 100)], Some(500)).unwrap());
        assert_eq!(bench.there(&[1, 2, 3, 4]), [1, 2, 3, 4], "all of it fits");
        drop(bench.reserve(&[(9, 101)], Some(500)).unwrap());
        assert_eq!(bench.there(&[1, 2, 3, 4]), [1, 2, 3]);
        // The oldest is wanted itself, so it stays and counts once.
        drop(bench.reserve(&[(2, 100), (9, 100)], Some(300)).unwrap());
        assert_eq!(bench.there(&[1, 2, 3]), [1, 2]);
    }

    #[test]
    fn what_is_loaded_or_on_its_way_stays() {
        let bench = Bench::new();
        bench.put(1, 100, 9);
        bench.put(2, 100, 1);
        let loaded = bench.reserve(&[(1, 100), (7, 100)], Some(400)).unwrap();
        let error = bench.reserve(&[(9, 300)], Some(400)).unwrap_err();
        assert!(matches!(error, RoomError::InUse { needed: ByteCount(500), limit: ByteCount(400) }), "{error}");
        assert!(error.to_string().contains("--cache-size"));
        assert_eq!(bench.there(&[1, 2]), [1, 2], "nothing goes for a shard that is refused");
        let beside = bench.reserve(&[(9, 200)], Some(400)).unwrap();
        assert_eq!(bench.there(&[1, 2]), [1]);
        drop((loaded, beside));
        drop(bench.reserve(&[(9, 400)], Some(400)).unwrap());
        assert_eq!(bench.there(&[1]), [0_u8; 0]);
    }

    #[test]
    fn a_shard_that_is_larger_than_the_limit_is_refused_by_the_flag() {
        let bench = Bench::new();
        bench.put(1, 100, 1);
        let error = bench.reserve(&[(8, 3_000_000), (9, 1_000_000)], Some(3_500_000)).unwrap_err();
        let expected =
            "the tensors of this shard are 4.00 MB, --cache-size allows 3.50 MB: raise it to 4.00 MB at least";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(bench.there(&[1]), [1]);
    }
}
