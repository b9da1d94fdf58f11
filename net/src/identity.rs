//! A machine's long-lived Ed25519 key.

use std::{fmt, path::Path, sync::Arc};

use ring::{
    rand::SystemRandom,
    signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey},
};
use rustls::{
    SignatureScheme,
    crypto::ring::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use crate::{
    ids::PeerId,
    keyfile::{self, KeyFileError},
};

/// The key that proves who this machine is. Cheap to clone; never printed.
#[derive(Clone)]
pub struct Identity {
    peer_id: PeerId,
    certified: Arc<CertifiedKey>,
    reset_key: [u8; 32],
}

impl Identity {
    /// Reads the key at `path` (PKCS#8), or makes one there that only its owner can read.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, KeyFileError> {
        keyfile::load_or_create(path.as_ref(), "an Ed25519 key", new_pkcs8, Self::from_pkcs8)
    }

    /// A key that lives as long as the process.
    pub fn ephemeral() -> Self {
        Self::from_pkcs8(&new_pkcs8()).expect("ring reads what it wrote")
    }

    /// The public half.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Signs `message` for `purpose`: a signature for one purpose holds for no other, and for no TLS handshake.
    pub fn sign(&self, purpose: &str, message: &[u8]) -> [u8; 64] {
        let signer = self.certified.key.choose_scheme(&[SignatureScheme::ED25519]);
        let signature = signer.and_then(|signer| signer.sign(&signed_bytes(purpose, message)).ok());
        signature.and_then(|bytes| bytes.try_into().ok()).expect("an Ed25519 key signs in 64 bytes")
    }

    /// The key as rustls wants it; the "certificate" is the bare public key.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    /// Key of stateless resets, stable over restarts so that peers notice them.
    pub(crate) fn reset_key(&self) -> &[u8; 32] {
        &self.reset_key
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Option<Self> {
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8)).ok()?;
        let spki = key.public_key()?.to_vec();
        Some(Self {
            peer_id: PeerId::from_spki(&spki)?,
            certified: Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key)),
            reset_key: blake3::derive_key("qmesh stateless reset v1", pkcs8),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id.short())
    }
}

impl PeerId {
    /// Whether this key made the signature, with [`Identity::sign`].
    pub fn has_signed(&self, purpose: &str, message: &[u8], signature: &[u8; 64]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(&signed_bytes(purpose, message), signature).is_ok()
    }
}

/// What is signed: a hash under a key of the purpose, so that no message can be made to look like one of another protocol.
fn signed_bytes(purpose: &str, message: &[u8]) -> [u8; 32] {
    let key = blake3::derive_key("qmesh signature v1", purpose.as_bytes());
    *blake3::keyed_hash(&key, message).as_bytes()
}

fn new_pkcs8() -> Vec<u8> {
    let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
    key.expect("the system's random source, without which no TLS works either").as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_file_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/identity.key");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(Identity::load_or_create(&path).unwrap().peer_id(), first.peer_id());
        assert_ne!(Identity::ephemeral().peer_id(), first.peer_id());
        fs::write(&path, "not a key").unwrap();
        assert!(matches!(Identity::load_or_create(&path), Err(KeyFileError::Content { .. })));
    }

    #[test]
    fn a_signature_holds_for_its_key_purpose_and_message() {
        let identity = Identity::ephemeral();
        let signature = identity.sign("a test", b"hello");
        let peer = identity.peer_id();
        assert!(peer.has_signed("a test", b"hello", &signature));
        assert!(!peer.has_signed("a test", b"hellp", &signature) && !peer.has_signed("another", b"hello", &signature));
        assert!(!Identity::ephemeral().peer_id().has_signed("a test", b"hello", &signature));
    }

    #[cfg(unix)]
    #[test]
    fn a_key_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity.key");
        Identity::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Identity::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Readable { mode: 0o640, .. }), "{error}");
    }
}
