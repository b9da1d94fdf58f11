//! The mesh's join secret, and the proof of holding it.

use std::{fmt, path::Path};

use crate::{
    ids::PeerId,
    keyfile::{self, KeyFileError},
};

/// 128 random bits that let a worker in. Never printed, never sent: only proofs are.
#[derive(Clone, Eq, PartialEq)]
pub struct JoinSecret(pub(crate) [u8; 16]);

impl JoinSecret {
    /// A new secret.
    pub fn random() -> Self {
        Self(keyfile::random())
    }

    /// Reads the secret at `path`, or makes one there that only its owner can read.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        let path = path.as_ref();
        let bytes = keyfile::load_or_create(path, || Self::random().0.to_vec())?;
        let content = |_| KeyFileError::Content { path: path.into(), what: "a join secret" };
        bytes.try_into().map(Self).map_err(content)
    }

    /// Puts a new secret at `path`; tickets with the old one let nobody in any more.
    pub fn rotate(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        let secret = Self::random();
        keyfile::replace(path.as_ref(), &secret.0)?;
        Ok(secret)
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
    fn rotation_replaces_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("join.secret");
        let first = JoinSecret::load_or_create(&path).unwrap();
        let second = JoinSecret::rotate(&path).unwrap();
        assert_ne!(first.id(), second.id());
        assert_eq!(JoinSecret::load_or_create(&path).unwrap(), second);
    }
}
