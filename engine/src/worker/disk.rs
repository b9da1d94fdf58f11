//! How quickly the disk is read on which the cache is.

use std::{
    fs,
    io::{self, Write},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::Path,
    thread,
    time::Instant,
};

/// Bytes a second at which so many threads read pieces of a file that is not in memory; `None` where the system cannot be told
/// to forget a file, so that nothing could be learnt. It takes a tenth of a second on a usual disk.
pub(super) fn read_rate(folder: &Path, threads: NonZeroUsize) -> io::Result<Option<u64>> {
    fs::create_dir_all(folder)?;
    // It has no name, so that nothing is left however this ends.
    let mut file = tempfile::tempfile_in(folder)?;
    // Not zeros, which some file systems do not write.
    let piece: Vec<u8> = (0..PIECE_BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..PIECES {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    if !forget(&file) {
        return Ok(None);
    }
    let (file, started) = (&file, Instant::now());
    thread::scope(|scope| {
        let readers = threads.get().min(PIECES);
        let read = move |first: usize| -> io::Result<()> {
            let mut into = vec![0; PIECE_BYTES];
            // The last ones first, so that nobody reads ahead for them.
            let pieces = (0..PIECES).rev().skip(first).step_by(readers);
            pieces.into_iter().try_for_each(|piece| file.read_exact_at(&mut into, (piece * PIECE_BYTES) as u64))
        };
        let readers: Vec<_> = (0..readers).map(|first| scope.spawn(move || read(first))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
    })?;
    let seconds = started.elapsed().as_secs_f64().max(1e-6);
    Ok(Some(((PIECES * PIECE_BYTES) as f64 / seconds) as u64))
}

/// Takes what is on the disk out of memory; whether that can be asked for.
#[cfg(target_os = "linux")]
fn forget(file: &fs::File) -> bool {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn forget(_file: &fs::File) -> bool {
    false
}

/// As much as is read of an expert's matrix at a time.
const PIECE_BYTES: usize = 512 << 10;
const PIECES: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_a_rate_and_keeps_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cache");
        let rate = read_rate(&folder, NonZeroUsize::new(3).unwrap()).unwrap();
        assert!(rate.is_none_or(|rate| rate > 100_000), "{rate:?}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(read_rate(&file, NonZeroUsize::MIN).is_err());
    }
}
