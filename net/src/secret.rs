//! The mesh's join secret, and the proof of holding it.

use std::{fmt, path::Path};

use crate::{
    ids::PeerId,
    keyfile::{self, KeyFileError},
};

/// 128 random bits that let a worker in. Never printed, never sent: only proofs are.
#[derive(Clone, Eq, PartialEq)]
pub struct JoinSecret(pub(crate) [u8; 16]);

/// The right to join a mesh, as it outlives the coordinator's process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinRight {
    /// What its tickets prove.
    pub secret: JoinSecret,
    /// When it ends for workers that have not joined before, in seconds since 1970.
    pub expires_unix: Option<u64>,
}

impl JoinSecret {
    /// A new secret.
    pub fn random() -> Self {
        Self(keyfile::random())
    }

    /// Tells secrets apart without giving one away.
    pub fn id(&self) -> [u8; 8] {
        let hash = blake3::hash(&self.0);
        *hash.as_bytes().first_chunk().expect("32 bytes hold 8")
    }

    /// Proof that `worker` holds the secret, good for one TLS connection (its `exporter`) to one coordinator.
    pub fn proof(&self, exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> [u8; 32] {
        self.keyed_hash(exporter, worker, coordinator).into()
    }

    /// Whether `proof` is the one above; takes the same time whatever it holds.
    pub fn verify(&self, proof: &[u8; 32], exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> bool {
        self.keyed_hash(exporter, worker, coordinator) == blake3::Hash::from_bytes(*proof)
    }

    fn keyed_hash(&self, exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> blake3::Hash {
        let key = blake3::derive_key("qmesh join v1", &self.0);
        blake3::keyed_hash(&key, &[*exporter, worker.0, coordinator.0].concat())
    }
}

impl JoinRight {
    /// A new secret without an end.
    pub fn random() -> Self {
        Self { secret: JoinSecret::random(), expires_unix: None }
    }

    /// Reads what is kept at `path`, or makes it there, for its owner alone to read.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        keyfile::load_or_create(path.as_ref(), "a join secret", || Self::random().to_bytes(), Self::from_bytes)
    }

    /// Puts a new secret at `path`; tickets with the old one no longer let anybody in.
    pub fn rotate(path: impl AsRef<Path>, expires_unix: Option<u64>) -> Result<Self, KeyFileError> {
        let right = Self { expires_unix, ..Self::random() };
        keyfile::replace(path.as_ref(), &right.to_bytes())?;
        Ok(right)
    }

    /// Gives the right at `path` another end, in seconds since 1970.
    pub fn limit(path: impl AsRef<Path>, expires_unix: u64) -> Result<Self, KeyFileError> {
        let right = Self { expires_unix: Some(expires_unix), ..Self::load_or_create(path.as_ref())? };
        keyfile::replace(path.as_ref(), &right.to_bytes())?;
        Ok(right)
    }

    /// The secret, then 8 bytes of its end if it has one.
    fn to_bytes(&self) -> Vec<u8> {
        let end = self.expires_unix.map(u64::to_le_bytes);
        self.secret.0.into_iter().chain(end.into_iter().flatten()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (secret, end) = bytes.split_first_chunk()?;
        let expires_unix = if end.is_empty() { None } else { Some(u64::from_le_bytes(end.try_into().ok()?)) };
        Some(Self { secret: JoinSecret(*secret), expires_unix })
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_one_connection_and_two_keys() {
        let (secret, worker, coordinator) = (JoinSecret([1; 16]), PeerId([2; 32]), PeerId([3; 32]));
        let proof = secret.proof(&[4; 32], worker, coordinator);
        assert!(secret.verify(&proof, &[4; 32], worker, coordinator));
        assert!(!secret.verify(&proof, &[5; 32], worker, coordinator));
        assert!(!secret.verify(&proof, &[4; 32], coordinator, worker));
        assert!(!JoinSecret([0; 16]).verify(&proof, &[4; 32], worker, coordinator));
        assert_eq!(format!("{secret:?}"), "JoinSecret(…)");
    }

    #[test]
    fn the_end_is_kept_with_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("join.secret");
        let first = JoinRight::load_or_create(&path).unwrap();
        let limited = JoinRight::limit(&path, 7).unwrap();
        assert_eq!(limited, JoinRight { expires_unix: Some(7), ..first });
        assert_eq!(JoinRight::load_or_create(&path).unwrap(), limited);
        assert_eq!(JoinRight::limit(&path, 8).unwrap().expires_unix, Some(8));
        // A new secret starts anew.
        assert_eq!(JoinRight::rotate(&path, None).unwrap().expires_unix, None);
        std::fs::write(&path, [0; 23]).unwrap();
        assert!(matches!(JoinRight::load_or_create(&path), Err(KeyFileError::Content { .. })));
    }

    #[test]
    fn rotation_replaces_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("join.secret");
        let first = JoinRight::load_or_create(&path).unwrap();
        let second = JoinRight::rotate(&path, None).unwrap();
        assert_ne!(first.secret.id(), second.secret.id());
        assert_eq!(JoinRight::load_or_create(&path).unwrap(), second);
    }
}
