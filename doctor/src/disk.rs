//! Whether the cache folder has room, and how quickly it is written and read.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use qmesh_models::{bytes::ByteCount, files::free_bytes};

use crate::Finding;

const CHECK: &str = "disk";
/// Less than any model that is worth the trouble.
const LEAST: ByteCount = ByteCount(200_000_000);
/// Less than this, and loading a shard is mostly waiting for the disk, bytes a second.
const RATE: f64 = 100e6;
/// Written at once, and then waited for until it is on the disk.
const PIECE_BYTES: usize = 4 << 20;
/// Written at most.
const PIECES: usize = 16;
/// No longer than this is written.
const TIME: Duration = Duration::from_secs(2);

/// Read at a time, by each thread.
const READ_BYTES: usize = 256 << 10;
/// Read in all.
const READS: usize = 96;
/// Written at a time before that.
const NOISE_BYTES: usize = 64 << 10;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Facts {
    free: ByteCount,
    bytes_per_second: f64,
    /// Where that can be found out.
    read_bytes_per_second: Option<u64>,
}

/// Looks at the cache folder `folder`, which is made where it is missing; less than `wanted` free is worth a warning.
pub fn check(folder: &Path, wanted: ByteCount) -> Finding {
    match measure(folder) {
        Ok(facts) => judge(folder, facts, wanted),
        Err(error) => Finding::fail(
            CHECK,
            format!("{} cannot be written: {error}", folder.display()),
            "choose another folder with QMESH_CACHE (a worker: --cache)",
        ),
    }
}

/// Bytes a second at which so many threads read pieces of a file in `folder`, which is made where it is missing, that is not in
/// memory; `None` where the system cannot be told to forget a file. It takes a tenth of a second on a usual disk.
///
/// # Errors
/// The folder cannot be written or read.
pub fn read_rate(folder: &Path, threads: NonZeroUsize) -> io::Result<Option<u64>> {
    fs::create_dir_all(folder)?;
    // It has no name, so that nothing is left however this ends.
    let mut file = tempfile::tempfile_in(folder)?;
    let piece = noise(NOISE_BYTES);
    (0..READS * READ_BYTES / NOISE_BYTES).try_for_each(|_| file.write_all(&piece))?;
    file.sync_data()?;
    if !forget(&file) {
        return Ok(None);
    }
    let (file, started) = (&file, Instant::now());
    thread::scope(|scope| {
        let readers = threads.get().min(READS);
        let read = move |first: usize| -> io::Result<()> {
            // On the stack, which goes with the thread: an allocator would keep some of it for itself.
            let mut into = [0; READ_BYTES];
            // The last ones first, so that nobody reads ahead for them.
            let mut reads = (0..READS).rev().skip(first).step_by(readers);
            reads.try_for_each(|read| file.read_exact_at(&mut into, (read * READ_BYTES) as u64))
        };
        let readers: Vec<_> = (0..readers).map(|first| scope.spawn(move || read(first))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    Ok(Some(((READS * READ_BYTES) as f64 / started.elapsed().as_secs_f64().max(1e-6)) as u64))
}

/// Takes what is on the disk out of memory; whether that can be asked for.
#[cfg(target_os = "linux")]
fn forget(file: &File) -> bool {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn forget(_file: &File) -> bool {
    false
}

/// Not zeros, which some file systems do not write.
fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn measure(folder: &Path) -> io::Result<Facts> {
    fs::create_dir_all(folder)?;
    let free = free_bytes(folder)?;
    // It has no name, so that nothing is left however this ends.
    let mut file = tempfile::tempfile_in(folder)?;
    let piece = noise(PIECE_BYTES);
    let (started, mut written) = (Instant::now(), 0);
    while written < PIECES && started.elapsed() < TIME && free > ((written + 2) * PIECE_BYTES) as u64 {
        file.write_all(&piece)?;
        file.sync_data()?;
        written += 1;
    }
    let bytes_per_second = (written * PIECE_BYTES) as f64 / started.elapsed().as_secs_f64().max(1e-6);
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(Facts { free: ByteCount(free), bytes_per_second, read_bytes_per_second: read_rate(folder, threads)? })
}

fn judge(folder: &Path, facts: Facts, wanted: ByteCount) -> Finding {
    let Facts { free, bytes_per_second, read_bytes_per_second } = facts;
    let at = folder.display();
    let elsewhere = "free some, or choose a folder on another disk with QMESH_CACHE (a worker: --cache)";
    if free < LEAST {
        return Finding::fail(CHECK, format!("{at} has {free} free"), elsewhere);
    }
    let read = read_bytes_per_second.map_or(String::new(), |rate| format!(" and read at {}/s", ByteCount(rate)));
    let found = format!("{at} has {free} free, is written at {}/s{read}", ByteCount(bytes_per_second as u64));
    if free < wanted {
        Finding::warn(CHECK, format!("{found}; less than {wanted} are few for a model"), elsewhere)
    } else if bytes_per_second < RATE {
        let fix = "it works, but fetching waits for the disk: choose a folder on a quicker one with QMESH_CACHE (a worker: \
                   --cache)";
        Finding::warn(CHECK, found, fix)
    } else {
        Finding::ok(CHECK, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    #[test]
    fn room_and_rate_are_judged() {
        let verdict = |free, bytes_per_second| {
            let facts = Facts { free: ByteCount(free), bytes_per_second, read_bytes_per_second: None };
            judge(Path::new("/cache"), facts, ByteCount(5_000_000_000)).verdict
        };
        assert_eq!(verdict(50_000_000_000, 500e6), Verdict::Ok);
        assert_eq!(verdict(50_000_000_000, 20e6), Verdict::Warn);
        assert_eq!(verdict(2_000_000_000, 500e6), Verdict::Warn);
        assert_eq!(verdict(100_000_000, 500e6), Verdict::Fail);
    }

    #[test]
    fn reading_has_a_rate_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cache");
        let rate = read_rate(&folder, NonZeroUsize::new(3).unwrap()).unwrap();
        assert!(rate.is_none_or(|rate| rate > 100_000), "{rate:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(read_rate(&file, NonZeroUsize::MIN).is_err());
    }

    #[test]
    fn a_folder_is_made_and_left_empty() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a").join("cache");
        assert_ne!(check(&folder, ByteCount(1)).verdict, Verdict::Fail);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = check(&file.join("cache"), ByteCount(1));
        assert_eq!((finding.verdict, finding.fix.unwrap().contains("--cache")), (Verdict::Fail, true));
    }
}
