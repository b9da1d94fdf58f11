//! The book as it outlives the process, in a file beside the coordinator's key. Several coordinators of one user share it: each
//! change reads the file anew, under a lock, and each of them notices what the others have changed.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use qmesh_net::{KeyFileError, PeerId, read_private, replace_private};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Book, BookFull, Member, Standing};

/// The book and its file. Clones share them.
#[derive(Clone, Debug)]
pub struct Members(Arc<Inner>);

/// Why the book cannot be read, or changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MembersError {
    /// The file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The lock beside it.
    #[error("{}: {source}", path.display())]
    Lock {
        /// The file that is locked.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// What is in the file.
    #[error(
        "{} does not say which workers were admitted ({text}): nobody is let in by it; repair it, or delete it, and who was revoked \
         is forgotten too",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// There is no room.
    #[error(transparent)]
    Full(#[from] BookFull),
}

#[derive(Debug)]
struct Inner {
    /// None where the book is for this process alone.
    path: Option<PathBuf>,
    /// Held while the file is changed, so that nobody who only reads waits for the disk.
    changing: Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    book: Arc<Book>,
    /// Which file that was.
    stamp: Option<Stamp>,
    /// Who was here since it was written, and when, in seconds since 1970.
    seen: BTreeMap<PeerId, u64>,
}

/// What tells that a file was replaced.
type Stamp = (SystemTime, u64);

/// As the file has it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    workers: Vec<WrittenMember>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenMember {
    key: String,
    name: String,
    standing: Standing,
    since_unix: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seen_unix: Option<u64>,
}

impl Members {
    /// An empty book that lasts as long as the process.
    pub fn for_now() -> Self {
        Self::at(None, Known::default())
    }

    /// The book that is kept in this folder.
    ///
    /// # Errors
    /// There is one that cannot be read.
    pub fn open(directory: &Path) -> Result<Self, MembersError> {
        let path = directory.join(FILE);
        let (stamp, book) = (stamp(&path), Arc::new(read(&path)?));
        Ok(Self::at(Some(path), Known { book, stamp, seen: BTreeMap::new() }))
    }

    /// What was decided so far.
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.known().book)
    }

    /// When a key was here last, in seconds since 1970.
    pub fn seen_unix(&self, peer: PeerId) -> Option<u64> {
        let known = self.known();
        known.seen.get(&peer).copied().max(known.book.get(peer).and_then(|member| member.seen_unix))
    }

    /// Changes the book, and its file with it: afterwards both hold the change, or neither. It waits for the disk.
    ///
    /// # Errors
    /// The file cannot be read or written, or there is no room.
    pub fn change(&self, change: impl FnOnce(&mut Book) -> Result<(), BookFull>) -> Result<(), MembersError> {
        let _one_at_a_time = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let _others_wait = self.0.path.as_deref().map(lock).transpose()?;
        let mut book = match &self.0.path {
            Some(path) => read(path)?,
            None => (*self.book()).clone(),
        };
        let seen = self.known().seen.clone();
        seen.iter().for_each(|(peer, at)| book.seen(*peer, *at));
        change(&mut book)?;
        if let Some(path) = &self.0.path {
            write(path, &book)?;
        }
        let stamp = self.0.path.as_deref().and_then(stamp);
        let mut known = self.known();
        known.seen.retain(|peer, at| seen.get(peer) != Some(at));
        (known.book, known.stamp) = (Arc::new(book), stamp);
        Ok(())
    }

    /// Reads the file again if somebody else has changed it; whether it was read.
    ///
    /// # Errors
    /// It cannot be read now; what was known before still holds.
    pub fn refresh(&self) -> Result<bool, MembersError> {
        let Some(path) = &self.0.path else { return Ok(false) };
        let stamp = stamp(path);
        if self.known().stamp == stamp {
            return Ok(false);
        }
        // Once: a file that cannot be read is not looked at again before it is another one.
        self.known().stamp = stamp;
        let book = Arc::new(read(path)?);
        self.known().book = book;
        Ok(true)
    }

    /// A key of the book is, or was, here now. It is written with the next change, or by [`Members::keep_seen`].
    pub fn saw(&self, peer: PeerId) {
        let mut known = self.known();
        if known.book.get(peer).is_some() {
            known.seen.insert(peer, now_unix());
        }
    }

    /// Writes down who was here. It waits for the disk.
    ///
    /// # Errors
    /// As [`Members::change`].
    pub fn keep_seen(&self) -> Result<(), MembersError> {
        let is_kept = self.known().seen.is_empty();
        if is_kept { Ok(()) } else { self.change(|_| Ok(())) }
    }

    fn at(path: Option<PathBuf>, known: Known) -> Self {
        Self(Arc::new(Inner { path, changing: Mutex::default(), known: Mutex::new(known) }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Keeps other processes from changing the file, until dropped.
fn lock(path: &Path) -> Result<File, MembersError> {
    let path = path.with_extension("lock");
    let open = || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|source| MembersError::Lock { path: path.clone(), source })
}

fn read(path: &Path) -> Result<Book, MembersError> {
    let Some(bytes) = read_private(path, FILE_BYTES)? else { return Ok(Book::default()) };
    let damaged = |text: String| MembersError::Damaged { path: path.to_owned(), text };
    let written: Written = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if written.version != VERSION {
        return Err(damaged(format!("it is of version {}, and this program knows {VERSION}", written.version)));
    }
    let mut book = Book::default();
    for WrittenMember { key, name, standing, since_unix, seen_unix } in written.workers {
        let peer = key.parse().map_err(|error| damaged(format!("the key of {name:?}: {error}")))?;
        let member = Member { name, standing, since_unix, seen_unix };
        if book.members.insert(peer, member).is_some() {
            return Err(damaged(format!("the key {key} comes twice")));
        }
    }
    Ok(book)
}

fn write(path: &Path, book: &Book) -> Result<(), MembersError> {
    let member = |(peer, member): (PeerId, &Member)| {
        let Member { name, standing, since_unix, seen_unix } = member.clone();
        WrittenMember { key: peer.to_string(), name, standing, since_unix, seen_unix }
    };
    let written = Written { version: VERSION, workers: book.members().map(member).collect() };
    let damaged = |error: serde_json::Error| MembersError::Damaged { path: path.to_owned(), text: error.to_string() };
    let mut bytes = serde_json::to_vec_pretty(&written).map_err(damaged)?;
    bytes.push(b'\n');
    Ok(replace_private(path, &bytes)?)
}

/// In the folder of keys.
const FILE: &str = "workers.json";
const VERSION: u32 = 1;
/// No more is read: a full book has less.
const FILE_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);

    #[test]
    fn what_was_decided_outlives_the_process_and_is_its_owners_own() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let members = Members::open(&keys).unwrap();
        assert_eq!(*members.book(), Book::default());
        fs::create_dir(&keys).unwrap();
        members.change(|book| book.admit(ONE, "attic", 10)).unwrap();
        members.change(|book| book.revoke(OTHER, "cellar", 11)).unwrap();
        members.saw(ONE);
        members.saw(PeerId([3; 32]));
        assert!(members.seen_unix(ONE) > Some(10) && members.seen_unix(OTHER).is_none());
        members.keep_seen().unwrap();
        let again = Members::open(&keys).unwrap();
        assert_eq!((again.book(), again.book().members().count()), (members.book(), 2));
        assert_eq!(again.seen_unix(ONE), members.seen_unix(ONE));
        let mode = |name: &str| fs::metadata(keys.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(FILE), mode("workers.lock")), (0o600, 0o600));
    }

    #[test]
    fn coordinators_of_one_user_do_not_undo_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let [here, there] = [(); 2].map(|()| Members::open(folder.path()).unwrap());
        here.change(|book| book.admit(ONE, "attic", 10)).unwrap();
        there.change(|book| book.admit(OTHER, "cellar", 11)).unwrap();
        assert_eq!(there.book().members().count(), 2);
        assert!(here.refresh().unwrap() && !here.refresh().unwrap());
        assert_eq!(here.book(), there.book());
    }

    #[test]
    fn a_damaged_book_admits_nobody_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let members = Members::open(folder.path()).unwrap();
        members.change(|book| book.admit(ONE, "attic", 10)).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let member =
            whole[whole.find('{').unwrap() + 1..].find('{').map(|at| at + whole.find('{').unwrap() + 1).unwrap();
        let twice =
            format!("{}{},{}", &whole[..member], &whole[member..whole.rfind(']').unwrap()].trim(), &whole[member..]);
        for damaged in [
            String::new(),
            whole[..whole.len() / 2].to_owned(),
            whole.replace("\"version\": 1", "\"version\": 2"),
            whole.replace("admitted", "trusted"),
            whole.replace(&ONE.to_string(), "abc"),
            twice,
        ] {
            fs::write(&path, &damaged).unwrap();
            let error = Members::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("workers.json does not say") && error.contains("nobody is let in"), "{error}");
            assert!(members.change(|book| book.admit(OTHER, "x", 0)).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "it is left for its owner to look at");
        }
        fs::write(&path, &whole).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Members::open(folder.path()).unwrap_err();
        assert!(matches!(error, MembersError::File(KeyFileError::Readable { .. })), "{error}");
    }

    #[test]
    fn a_book_for_now_leaves_nothing_behind() {
        let members = Members::for_now();
        members.change(|book| book.admit(ONE, "attic", 10)).unwrap();
        assert!(members.book().get(ONE).is_some() && !members.refresh().unwrap());
    }
}
