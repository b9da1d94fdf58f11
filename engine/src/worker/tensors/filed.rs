//! Tensors that stay on disk while a shard computes with parts of them.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use qmesh_models::spec::TensorSpec;

use super::store::{Owner, Place, hash_part};
use crate::{backend::TensorFile, error::EngineError};

/// A tensor whose bytes have been checked, and its file, which stays open: that somebody deletes it is no matter then.
///
/// It is read in pieces, which cannot be checked again each time. Who changes the file gives himself away by its length and, in
/// the user's files, by the time of its last change; what a disk hands out wrong without an error is not found.
#[derive(Debug)]
pub(super) struct FiledTensor {
    name: String,
    path: PathBuf,
    file: File,
    offset: u64,
    owner: Owner,
    stamp: Stamp,
}

/// What a file's changes leave their mark on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    bytes: u64,
    /// In the cache it says when a tensor was last used.
    modified: Option<(i64, i64)>,
}

impl Stamp {
    fn of(file: &File, owner: Owner) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let modified = match owner {
            Owner::Cache => None,
            Owner::User => Some((metadata.mtime(), metadata.mtime_nsec())),
        };
        Ok(Self { bytes: metadata.len(), modified })
    }
}

impl FiledTensor {
    /// Opens the tensor at `place` and reads it once; `None` where its bytes are others than they must be.
    pub(super) fn open(place: &Place, tensor: &TensorSpec) -> io::Result<Option<Self>> {
        let file = File::open(&place.path)?;
        let stamp = Stamp::of(&file, place.owner)?;
        let right = hash_part(&file, place.offset, tensor.bytes)? == place.hash;
        let Place { ref path, offset, owner, .. } = *place;
        let (name, path) = (tensor.name.clone(), path.clone());
        Ok(right.then_some(Self { name, path, file, offset, owner, stamp }))
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> EngineError {
        EngineError::Read { tensor: self.name.clone(), reason: format!("{}: {reason}", self.path.display()) }
    }
}

impl TensorFile for FiledTensor {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), EngineError> {
        self.file.read_exact_at(into, self.offset + offset).map_err(|error| self.failed(&error))?;
        // Only now: a change after this read is none of its bytes.
        match Stamp::of(&self.file, self.owner) {
            Ok(stamp) if stamp == self.stamp => Ok(()),
            Ok(_) => Err(self.failed(&"it has changed while it was in use")),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn read_ahead(&self, offset: u64, bytes: u64) {
        read_ahead(&self.file, self.offset + offset, bytes);
    }
}

/// Lets the system begin to read; where it does not, the bytes come when they are needed.
#[cfg(target_os = "linux")]
fn read_ahead(file: &File, offset: u64, bytes: u64) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return };
    if let Err(error) = posix_fadvise(file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED) {
        tracing::debug!(%error, "a tensor is not read ahead");
    }
}

#[cfg(not(target_os = "linux"))]
fn read_ahead(_file: &File, _offset: u64, _bytes: u64) {}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, path::Path};

    use qmesh_models::{spec::TensorRole, tensor::TensorType};

    use super::*;
    use crate::worker::tensors::places::TensorPlaces;

    const BODY: &[u8] = b"sixteen bytes...";

    fn tensor() -> TensorSpec {
        let (role, name) = (TensorRole::OutputNorm, "t".to_owned());
        TensorSpec { role, name, rows: 1, cols: 4, dtype: TensorType::F32, part: 0, offset: 0, bytes: 16 }
    }

    /// A file in which the tensor begins after four bytes.
    fn place(folder: &Path, owner: Owner) -> Place {
        let path = folder.join("file");
        fs::write(&path, [b"head", BODY].concat()).unwrap();
        Place { path, offset: 4, hash: blake3::hash(BODY), owner }
    }

    #[test]
    fn pieces_are_read_even_when_the_file_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path(), Owner::Cache);
        let places = TensorPlaces::from_iter([(tensor().role, place.clone())]);
        let file = places.open(&tensor()).unwrap();
        // That it is used again is noted by the time of its last change.
        File::options().append(true).open(&place.path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        fs::remove_file(&place.path).unwrap();
        let mut into = [0; 5];
        file.read_ahead(8, 5);
        file.read_at(8, &mut into).unwrap();
        assert_eq!(into, BODY[8..13]);
        let beyond = file.read_at(12, &mut into).unwrap_err();
        assert!(matches!(&beyond, EngineError::Read { tensor, .. } if tensor == "t"), "{beyond}");
    }

    #[test]
    fn wrong_bytes_are_not_opened_and_leave_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        for (owner, stays) in [(Owner::User, true), (Owner::Cache, false)] {
            let place = place(folder.path(), owner);
            fs::write(&place.path, b"headsixteen bytes,,,").unwrap();
            let places = TensorPlaces::from_iter([(tensor().role, place.clone())]);
            let error = places.open(&tensor()).unwrap_err();
            assert!(matches!(&error, EngineError::Read { reason, .. } if reason.contains("has changed")), "{error}");
            assert_eq!(place.path.exists(), stays);
        }
    }

    #[test]
    fn a_user_who_changes_the_file_is_found_out() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path(), Owner::User);
        let file = TensorPlaces::from_iter([(tensor().role, place.clone())]).open(&tensor()).unwrap();
        let mut into = [0; 4];
        file.read_at(0, &mut into).unwrap();
        File::options().append(true).open(&place.path).unwrap().write_all(b"more").unwrap();
        let error = file.read_at(0, &mut into).unwrap_err();
        assert!(error.to_string().contains("it has changed while it was in use"), "{error}");
    }
}
