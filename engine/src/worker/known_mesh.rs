//! The mesh that has let a worker in by its key, as the worker remembers it over restarts.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use qmesh_net::{KeyFileError, PeerId, read_private, replace_private};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which coordinator a worker trusts, and where it was.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KnownMesh {
    /// Its key: whoever has another one is somebody else.
    pub coordinator: PeerId,
    /// Where to try, each as `host:port`, the best first; hints only.
    pub addresses: Vec<String>,
    /// What it called itself.
    pub mesh: String,
}

/// Why what a worker remembers cannot be read, or kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KnownMeshError {
    /// The file.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// What is in it.
    #[error("{} does not say which mesh has let this worker in ({text}): delete it to ask one anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        text: String,
    },
}

/// As it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    coordinator: String,
    addresses: Vec<String>,
    mesh: String,
}

impl KnownMesh {
    /// What is remembered in the file; `None` where nothing is.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn load(path: &Path) -> Result<Option<Self>, KnownMeshError> {
        let Some(bytes) = read_private(path, FILE_BYTES)? else { return Ok(None) };
        let damaged = |text: String| KnownMeshError::Damaged { path: path.to_owned(), text };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let coordinator = kept.coordinator.parse().map_err(|_| damaged("its key is none".to_owned()))?;
        Ok(Some(Self { coordinator, addresses: kept.addresses, mesh: kept.mesh }))
    }

    /// Writes it into the file, where it is not there yet as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn keep(&self, path: &Path) -> Result<(), KnownMeshError> {
        // What is damaged is replaced.
        if Self::load(path).is_ok_and(|kept| kept.as_ref() == Some(self)) {
            return Ok(());
        }
        let Self { coordinator, addresses, mesh } = self.clone();
        let kept = Kept { coordinator: coordinator.to_string(), addresses, mesh };
        let damaged = |text: String| KnownMeshError::Damaged { path: path.to_owned(), text };
        let bytes = serde_json::to_vec(&kept).map_err(|error| damaged(error.to_string()))?;
        Ok(replace_private(path, &bytes)?)
    }

    /// It has let the worker in at this address: there it is looked for first.
    pub(super) fn joined(&mut self, mesh: &str, address: SocketAddr) {
        let address = address.to_string();
        mesh.clone_into(&mut self.mesh);
        self.addresses.retain(|known| *known != address);
        self.addresses.insert(0, address);
        self.addresses.truncate(ADDRESSES);
    }
}

/// Addresses that are remembered.
const ADDRESSES: usize = 8;
/// No more is read of a file: names and addresses are short.
const FILE_BYTES: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_is_remembered_by_its_key_and_where_it_was_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker-attic.mesh");
        assert_eq!(KnownMesh::load(&path).unwrap(), None);
        let mut mesh = KnownMesh { coordinator: PeerId([7; 32]), addresses: vec!["a:1".into()], mesh: "old".into() };
        (0..20).for_each(|port| mesh.joined("new", ([10, 0, 0, 1], port).into()));
        assert_eq!((mesh.addresses[0].as_str(), mesh.addresses.len()), ("10.0.0.1:19", ADDRESSES));
        mesh.keep(&path).unwrap();
        mesh.keep(&path).unwrap();
        assert_eq!(KnownMesh::load(&path).unwrap(), Some(mesh));
        for damaged in ["", "{}", r#"{"coordinator":"x","addresses":[],"mesh":"m"}"#] {
            replace_private(&path, damaged.as_bytes()).unwrap();
            let error = KnownMesh::load(&path).unwrap_err().to_string();
            assert!(error.contains("worker-attic.mesh does not say") && error.contains("delete it"), "{error}");
        }
    }
}
