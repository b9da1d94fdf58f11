//! Where each tensor of a shard lies, and what is there: every byte is checked.

use std::{collections::HashMap, fmt::Display, fs::File, os::unix::fs::FileExt, sync::Arc};

use qmesh_models::spec::{TensorRole, TensorSpec};

use super::{filed::FiledTensor, store::Place};
use crate::{backend::TensorFile, error::EngineError};

/// Where each tensor of a shard lies, by role: a fused one serves several. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct TensorPlaces(Arc<HashMap<TensorRole, Place>>);

impl FromIterator<(TensorRole, Place)> for TensorPlaces {
    fn from_iter<I: IntoIterator<Item = (TensorRole, Place)>>(places: I) -> Self {
        Self(Arc::new(places.into_iter().collect()))
    }
}

impl TensorPlaces {
    /// Fills `into` with a tensor's bytes.
    ///
    /// # Errors
    /// When they cannot be read, or are not what they must be; a blob that is damaged is deleted then.
    pub(crate) fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        let place = self.place(tensor)?;
        let read = File::open(&place.path).and_then(|file| file.read_exact_at(into, place.offset));
        read.map_err(|error| refused(tensor, format_args!("{}: {error}", place.path.display())))?;
        if blake3::hash(into) == place.hash { Ok(()) } else { Err(changed(tensor, place)) }
    }

    /// Opens a tensor that stays where it is, after all of it has been read and checked once.
    ///
    /// # Errors
    /// As [`TensorPlaces::read`].
    pub(crate) fn open(&self, tensor: &TensorSpec) -> Result<Arc<dyn TensorFile>, EngineError> {
        let place = self.place(tensor)?;
        let opened = FiledTensor::open(place, tensor);
        match opened.map_err(|error| refused(tensor, format_args!("{}: {error}", place.path.display())))? {
            Some(file) => Ok(Arc::new(file)),
            None => Err(changed(tensor, place)),
        }
    }

    fn place(&self, tensor: &TensorSpec) -> Result<&Place, EngineError> {
        self.0.get(&tensor.role).ok_or_else(|| refused(tensor, "it was not fetched"))
    }
}

fn refused(tensor: &TensorSpec, reason: impl Display) -> EngineError {
    EngineError::Read { tensor: tensor.name.clone(), reason: reason.to_string() }
}

fn changed(tensor: &TensorSpec, place: &Place) -> EngineError {
    place.give_up();
    refused(tensor, format_args!("{} has changed", place.path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::worker::tensors::store::{Store, StoreError, Verdict, delete, failed};

    const BODY: &[u8] = b"sixteen bytes...";

    #[test]
    fn what_a_shard_reads_is_checked_and_damage_is_deleted() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::open(cache.path()).unwrap();
        let mut part = store.resume(blake3::hash(BODY), 16).unwrap();
        part.append(BODY).unwrap();
        assert_eq!(part.finish().unwrap(), Verdict::Kept);
        let place = store.find(blake3::hash(BODY), 16).unwrap();
        let tensor = TensorSpec {
            role: TensorRole::OutputNorm,
            name: "t".into(),
            rows: 1,
            cols: 4,
            dtype: TensorType::F32,
            part: 0,
            offset: 0,
            bytes: 16,
        };
        let weights = TensorPlaces::from_iter([(tensor.role, place.clone())]);
        let mut into = [0; 16];
        weights.read(&tensor, &mut into).unwrap();
        assert_eq!(into, BODY);

        fs::write(&place.path, b"sixteen bytes,,,").unwrap();
        assert!(!place.holds(16));
        let error = weights.read(&tensor, &mut into).unwrap_err();
        assert!(matches!(&error, EngineError::Read { reason, .. } if reason.contains("has changed")), "{error}");
        assert!(store.find(place.hash, 16).is_none());

        assert!(matches!(store.check_space(u64::MAX), Err(StoreError::Full { .. })));
        assert!(store.check_space(u64::MAX).unwrap_err().is_full());
        let io = |kind: io::ErrorKind| failed("write", cache.path())(kind.into());
        assert!(io(io::ErrorKind::StorageFull).is_full() && !io(io::ErrorKind::PermissionDenied).is_full());
        delete(&place.path).unwrap();
        store.check_space(1).unwrap();
    }
}
