//! Which tensors of the cache are in use on this machine: every shard that is loaded or being loaded has a file that lists
//! its tensors, `CACHE/uses/*.use`, which its worker keeps locked. A file that nobody has locked is of a worker that has
//! ended, however it did. Whoever declares uses, or deletes by them, has `CACHE/uses/lock` meanwhile, so that nothing is
//! deleted between a look at the cache and the declaration.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use blake3::Hash;

use super::store::{StoreError, failed};
use crate::worker::assignment::Assignment;

/// How long another process may have the lock, which it needs for a few reads and deletions.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
/// How often the lock is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// The most of a list that is read: far more tensors than a model has.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Tensors by content, with their bytes.
pub(super) type Tensors = HashMap<Hash, u64>;

/// The right to declare uses and to delete what nobody uses; nobody else has it meanwhile.
#[derive(Debug)]
pub(super) struct UseLock {
    folder: PathBuf,
    /// Locked until it is closed.
    _file: File,
}

/// What one shard uses of the cache, as long as this lives.
#[derive(Debug)]
pub(super) struct Use {
    path: PathBuf,
    /// Locked until it is closed.
    _file: File,
}

/// The uses of a worker's shards. Each ends with its assignment, which lives as long as anything of the shard does.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldUses(Arc<Mutex<Vec<ShardUse>>>);

/// Whose use it is, and the use.
type ShardUse = (Weak<Assignment>, Use);

impl UseLock {
    /// Waits until it has the lock. Blocks for 10 s at most.
    pub(super) fn acquire(cache: &Path) -> Result<Self, StoreError> {
        let folder = cache.join("uses");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let path = folder.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(failed("open", &path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { folder, _file: file }),
                Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
                Err(TryLockError::WouldBlock) if started.elapsed() >= LOCK_DEADLINE => {
                    return Err(StoreError::Busy { path, waited: LOCK_DEADLINE });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_INTERVAL),
            }
        }
    }

    /// All tensors that somebody uses. Lists of workers that have ended are deleted.
    pub(super) fn in_use(&self) -> Result<Tensors, StoreError> {
        let mut tensors = Tensors::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("read", &self.folder))? {
            let path = entry.map_err(failed("read", &self.folder))?.path();
            if path.extension().is_none_or(|extension| extension != "use") {
                continue;
            }
            match live_list(&path) {
                Ok(list) => tensors.extend(parse(&list)),
                // Its worker has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
        Ok(tensors)
    }

    /// Declares that a shard of this process uses `tensors`, whether they are in the cache already or not.
    pub(super) fn declare(&self, tensors: &Tensors) -> Result<Use, StoreError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}.use", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = self.folder.join(name);
        // A process of the same number may have left one behind.
        let open = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let mut file = open.map_err(failed("create", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path, waited: Duration::ZERO }),
        }
        let declared = Use { path, _file: file.try_clone().map_err(failed("open", &self.folder))? };
        let list: String = tensors.iter().map(|(hash, bytes)| format!("{} {bytes}\n", hash.to_hex())).collect();
        file.write_all(list.as_bytes()).map_err(failed("write", &declared.path))?;
        Ok(declared)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // One that stays behind is not locked any more, and counts for nothing.
        let _ = fs::remove_file(&self.path);
    }
}

impl HeldUses {
    /// Keeps a use as long as its assignment is anybody's, in place of an earlier one of the same.
    pub(super) fn hold(&self, assignment: &Arc<Assignment>, declared: Use) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(of, _)| of.strong_count() > 0 && !std::ptr::eq(of.as_ptr(), Arc::as_ptr(assignment)));
        held.push((Arc::downgrade(assignment), declared));
    }

    /// Ends the uses of shards that are gone.
    pub(crate) fn prune(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _)| of.strong_count() > 0);
    }
}

/// The list at `path` if its worker lives; one that is left over is deleted and empty.
fn live_list(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => {
            fs::remove_file(path)?;
            Ok(String::new())
        }
        Err(TryLockError::Error(error)) => Err(error),
        Err(TryLockError::WouldBlock) => {
            let mut list = String::new();
            file.take(LIST_BYTES_MAX).read_to_string(&mut list)?;
            Ok(list)
        }
    }
}

fn parse(list: &str) -> impl Iterator<Item = (Hash, u64)> + '_ {
    list.lines().filter_map(|line| {
        let (hash, bytes) = line.split_once(' ')?;
        Some((Hash::from_hex(hash).ok()?, bytes.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(bodies: &[&str]) -> Tensors {
        bodies.iter().map(|body| (blake3::hash(body.as_bytes()), body.len() as u64)).collect()
    }

    fn files(cache: &Path) -> usize {
        fs::read_dir(cache.join("uses")).unwrap().count()
    }

    #[test]
    fn a_use_lasts_as_long_as_it_is_held() {
        let cache = tempfile::tempdir().unwrap();
        let lock = UseLock::acquire(cache.path()).unwrap();
        assert_eq!(lock.in_use().unwrap(), Tensors::new());
        let first = lock.declare(&tensors(&["a", "bc"])).unwrap();
        let second = lock.declare(&tensors(&["bc", "def"])).unwrap();
        assert_eq!(lock.in_use().unwrap(), tensors(&["a", "bc", "def"]));
        drop(first);
        assert_eq!(lock.in_use().unwrap(), tensors(&["bc", "def"]));
        drop(second);
        assert_eq!((lock.in_use().unwrap(), files(cache.path())), (Tensors::new(), 1));
    }

    #[test]
    fn what_a_killed_worker_leaves_counts_for_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let lock = UseLock::acquire(cache.path()).unwrap();
        let list = format!("{} 1\n", blake3::hash(b"a").to_hex());
        fs::write(cache.path().join("uses").join("1-0.use"), list).unwrap();
        assert_eq!((lock.in_use().unwrap(), files(cache.path())), (Tensors::new(), 1));
    }

    #[test]
    fn one_at_a_time_declares_or_deletes() {
        let cache = tempfile::tempdir().unwrap();
        let lock = UseLock::acquire(cache.path()).unwrap();
        let folder = cache.path().to_owned();
        let other = thread::spawn(move || UseLock::acquire(&folder).map(|_| ()));
        thread::sleep(5 * LOCK_INTERVAL);
        assert!(!other.is_finished(), "the lock is not free");
        drop(lock);
        other.join().unwrap().unwrap();
    }
}
