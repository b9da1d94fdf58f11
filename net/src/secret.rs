//! What gives a right: to join a mesh, or to read a shared model. And the proof of holding it.

use std::{fmt, path::Path};

use crate::{
    ids::PeerId,
    keyfile::{self, KeyFileError},
};

/// 128 random bits that let a worker in. Never printed, never sent: only proofs are.
#[derive(Clone, Eq, PartialEq)]
pub struct JoinSecret(pub(crate) [u8; 16]);

/// 128 random bits that let a machine read one shared model, and nothing else. Printed in links alone, never sent.
#[derive(Clone, Eq, PartialEq)]
pub struct ReadSecret(pub(crate) [u8; 16]);

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
        id_of(&self.0)
    }

    /// Proof that `worker` holds the secret, good for one TLS connection (its `exporter`) to one coordinator.
    pub fn proof(&self, exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> [u8; 32] {
        keyed_hash(TO_JOIN, &self.0, exporter, [worker, coordinator]).into()
    }

    /// Whether `proof` is the one above; takes the same time whatever it holds.
    pub fn verify(&self, proof: &[u8; 32], exporter: &[u8; 32], worker: PeerId, coordinator: PeerId) -> bool {
        keyed_hash(TO_JOIN, &self.0, exporter, [worker, coordinator]) == blake3::Hash::from_bytes(*proof)
    }
}

impl ReadSecret {
    /// Reads the secret that is kept at `path`, or makes one there, for its owner alone to read: links stay good over
    /// restarts.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        let parse = |bytes: &[u8]| bytes.try_into().ok().map(Self);
        keyfile::load_or_create(path.as_ref(), "a read secret", || keyfile::random::<16>().to_vec(), parse)
    }

    /// Puts a new secret at `path`; links with the old one no longer let anybody read.
    pub fn rotate(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        let fresh = Self(keyfile::random());
        keyfile::replace_private(path.as_ref(), &fresh.0)?;
        Ok(fresh)
    }

    /// As [`JoinSecret::proof`], of a `reader` to who `has` the model.
    pub(crate) fn proof(&self, exporter: &[u8; 32], reader: PeerId, has: PeerId) -> [u8; 32] {
        keyed_hash(TO_READ, &self.0, exporter, [reader, has]).into()
    }

    /// Whether `proof` is the one above; takes the same time whatever it holds.
    pub(crate) fn verify(&self, proof: &[u8; 32], exporter: &[u8; 32], reader: PeerId, has: PeerId) -> bool {
        keyed_hash(TO_READ, &self.0, exporter, [reader, has]) == blake3::Hash::from_bytes(*proof)
    }

    /// Tells secrets apart without giving one away.
    pub(crate) fn id(&self) -> [u8; 8] {
        id_of(&self.0)
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
        keyfile::replace_private(path.as_ref(), &right.to_bytes())?;
        Ok(right)
    }

    /// Gives the right at `path` another end, in seconds since 1970.
    pub fn limit(path: impl AsRef<Path>, expires_unix: u64) -> Result<Self, KeyFileError> {
        let right = Self { expires_unix: Some(expires_unix), ..Self::load_or_create(path.as_ref())? };
        keyfile::replace_private(path.as_ref(), &right.to_bytes())?;
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

/// What a proof is for: one for joining is none for reading.
const TO_JOIN: &str = "qmesh join v1";
const TO_READ: &str = "qmesh read v1";

fn id_of(secret: &[u8; 16]) -> [u8; 8] {
    *blake3::hash(secret).as_bytes().first_chunk().expect("32 bytes hold 8")
}

/// `between` are the keys of who proves and of who asks for the proof.
fn keyed_hash(purpose: &str, secret: &[u8; 16], exporter: &[u8; 32], between: [PeerId; 2]) -> blake3::Hash {
    let key = blake3::derive_key(purpose, secret);
    blake3::keyed_hash(&key, &[*exporter, between[0].0, between[1].0].concat())
}

impl fmt::Debug for ReadSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadSecret(…)")
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
        // The same bits give another right for reading.
        assert!(!ReadSecret([1; 16]).verify(&proof, &[4; 32], worker, coordinator));
    }

    #[test]
    fn a_read_secret_is_kept_until_it_is_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reading.secret");
        let first = ReadSecret::load_or_create(&path).unwrap();
        assert_eq!(ReadSecret::load_or_create(&path).unwrap(), first);
        let second = ReadSecret::rotate(&path).unwrap();
        assert!(second != first && ReadSecret::load_or_create(&path).unwrap() == second);
        assert_eq!(format!("{second:?}"), "ReadSecret(…)");
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
