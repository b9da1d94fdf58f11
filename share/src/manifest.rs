//! The manifest: what a model is made of, to the last byte, signed by who shares it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use qmesh_net::{Identity, PeerId};
use rayon::prelude::*;
use thiserror::Error;

use crate::{
    codec::{self, Decode, Encode},
    error::{ShareError, in_file},
};

/// Least bytes of a chunk.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most chunks of a model: of larger models the chunks are larger, so that a manifest has 2 MiB at most.
const CHUNKS: u64 = 1 << 16;
/// Most bytes of a manifest with its signature.
pub(crate) const MANIFEST_BYTES: usize = 4 << 20;
/// Most files of a model.
const FILES: usize = 1024;
/// Most characters of a name and of a licence.
const TEXT_CHARS: usize = 200;
/// What the sharer's signature is for.
const SIGNED_FOR: &str = "a shared model's manifest";

/// What a model is.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Manifest {
    /// Its name, for people.
    pub name: String,
    /// Its licence, as its file names it.
    pub licence: Option<String>,
    /// Bytes of every chunk but the last one of a file: a power of two.
    pub chunk_bytes: u64,
    /// Its files, in their order.
    pub files: Vec<SharedFile>,
}

/// A file of a model.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct SharedFile {
    /// Its name, without a folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of each of its chunks.
    pub chunks: Vec<[u8; 32]>,
}

/// A manifest and who vouches for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedManifest {
    manifest: Manifest,
    bytes: Vec<u8>,
    hash: [u8; 32],
    signer: PeerId,
}

/// As it travels.
#[derive(Decode, Encode)]
struct Envelope {
    manifest: Vec<u8>,
    signer: [u8; 32],
    signature: [u8; 64],
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ManifestError {
    /// Its bytes are no manifest.
    #[error("it cannot be read ({text})")]
    Malformed {
        /// What the decoder says.
        text: String,
    },
    /// It is another one than the link names.
    #[error("it is not the one that the link names")]
    OtherHash,
    /// The signature is not its signer's.
    #[error("its signature does not hold")]
    Signature,
    /// It contradicts itself, or has what no model has.
    #[error("{text}")]
    Senseless {
        /// What is wrong.
        text: String,
    },
}

impl Manifest {
    /// Hashes the files on all CPUs: seconds for gigabytes.
    ///
    /// # Errors
    /// A file cannot be read, or the model has what no manifest can say.
    pub fn of(name: &str, licence: Option<&str>, paths: &[impl AsRef<Path>]) -> Result<Self, ShareError> {
        Self::watched((name, licence), paths, &|_, _| {})
    }

    /// The same, with `watch` told before the first piece and after each of how many bytes are hashed, of how many, in order.
    ///
    /// # Errors
    /// As for `of`.
    pub fn watched(
        (name, licence): (&str, Option<&str>),
        paths: &[impl AsRef<Path>],
        watch: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Self, ShareError> {
        let mut sizes = Vec::new();
        for path in paths {
            let path = path.as_ref();
            sizes.push((path, std::fs::metadata(path).map_err(in_file(path))?.len()));
        }
        let total = sizes.iter().map(|(_, bytes)| bytes).sum();
        let (chunk_bytes, done) = (chunk_bytes(total), Mutex::new(0));
        watch(0, total);
        let advance = |bytes: u64| {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += bytes;
            watch(*done, total);
        };
        let hashed = |&(path, bytes)| hashed(path, bytes, chunk_bytes, &advance);
        let files = sizes.iter().map(hashed).collect::<Result<_, _>>()?;
        let cut = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS).collect::<String>();
        let manifest = Self { name: cut(name), licence: licence.map(cut), chunk_bytes, files };
        manifest.check()?;
        Ok(manifest)
    }

    /// Of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Signs it.
    ///
    /// # Errors
    /// It is too long: no manifest that [`Manifest::of`] makes is.
    pub fn sign(self, identity: &Identity) -> Result<Vec<u8>, ManifestError> {
        let manifest = codec::to_bytes(&self)?;
        let signature = identity.sign(SIGNED_FOR, &manifest);
        codec::to_bytes(&Envelope { manifest, signer: identity.peer_id().0, signature })
    }

    fn check(&self) -> Result<(), ManifestError> {
        let senseless = |text: String| Err(ManifestError::Senseless { text });
        let texts = [Some(&self.name), self.licence.as_ref()];
        if texts.into_iter().flatten().any(|t| t.chars().count() > TEXT_CHARS || t.chars().any(char::is_control)) {
            return senseless("its name or licence is too long, or has control characters".into());
        }
        if self.files.is_empty() || self.files.len() > FILES {
            return senseless(format!("it has {} files", self.files.len()));
        }
        if !self.chunk_bytes.is_power_of_two() || self.chunk_bytes < CHUNK_BYTES {
            return senseless(format!("its chunks have {} bytes", self.chunk_bytes));
        }
        let total = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.bytes));
        if total.is_none_or(|total| chunk_bytes(total) != self.chunk_bytes) {
            return senseless(format!("chunks of {} bytes do not suit it", self.chunk_bytes));
        }
        for (i, file) in self.files.iter().enumerate() {
            if !qmesh_models::pull::is_file_name(&file.name) || self.files[..i].iter().any(|f| f.name == file.name) {
                return senseless("a file has no name that a file can have, or that of another one".into());
            }
            if file.bytes == 0 || file.chunks.len() as u64 != file.bytes.div_ceil(self.chunk_bytes) {
                return senseless(format!("{} has {} chunks for its length", file.name, file.chunks.len()));
            }
        }
        Ok(())
    }
}

impl SharedFile {
    /// What ranges of it are asked for by: it stands for its whole content.
    pub(crate) fn id(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("qmesh shared file v1");
        hasher.update(&self.bytes.to_le_bytes());
        for chunk in &self.chunks {
            hasher.update(chunk);
        }
        *hasher.finalize().as_bytes()
    }
}

impl SignedManifest {
    /// Takes what [`Manifest::sign`] made.
    ///
    /// # Errors
    /// It is damaged, or makes no sense.
    pub fn read(bytes: Vec<u8>) -> Result<Self, ManifestError> {
        let envelope: Envelope = codec::from_bytes(&bytes)?;
        let signer = PeerId(envelope.signer);
        if !signer.has_signed(SIGNED_FOR, &envelope.manifest, &envelope.signature) {
            return Err(ManifestError::Signature);
        }
        let manifest: Manifest = codec::from_bytes(&envelope.manifest)?;
        manifest.check()?;
        let hash = *blake3::hash(&envelope.manifest).as_bytes();
        Ok(Self { manifest, bytes, hash, signer })
    }

    /// The same, where the link says which one it has to be.
    ///
    /// # Errors
    /// Also where it is another one.
    pub fn expect(bytes: Vec<u8>, hash: [u8; 32]) -> Result<Self, ManifestError> {
        let read = Self::read(bytes)?;
        if read.hash == hash { Ok(read) } else { Err(ManifestError::OtherHash) }
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// BLAKE3 of the manifest without its signature: the same whoever signs it.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Who signed it.
    pub fn signer(&self) -> PeerId {
        self.signer
    }
}

/// Bytes of a chunk of a model of so many bytes.
fn chunk_bytes(total: u64) -> u64 {
    total.div_ceil(CHUNKS).next_power_of_two().max(CHUNK_BYTES)
}

/// A file of so many bytes, with `advance` told of each piece that is hashed.
fn hashed(path: &Path, bytes: u64, chunk_bytes: u64, advance: &(dyn Fn(u64) + Sync)) -> Result<SharedFile, ShareError> {
    let unnamed = || ManifestError::Senseless { text: format!("{} has no usable name", path.display()) };
    let name = qmesh_models::pull::file_name(path).ok_or_else(unnamed)?;
    let file = File::open(path).map_err(in_file(path))?;
    let hash = |buffer: &mut Vec<u8>, index: u64| {
        let at = index * chunk_bytes;
        let piece = &mut buffer[..(bytes - at).min(chunk_bytes) as usize];
        file.read_exact_at(piece, at).map_err(in_file(path))?;
        let hash = *blake3::hash(piece).as_bytes();
        advance(piece.len() as u64);
        Ok(hash)
    };
    let chunks = (0..bytes.div_ceil(chunk_bytes)).into_par_iter();
    let chunks = chunks.map_init(|| vec![0; chunk_bytes as usize], hash).collect::<Result<_, ShareError>>()?;
    Ok(SharedFile { name, bytes, chunks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(content: &[u8]) -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        std::fs::write(&path, content).unwrap();
        let manifest = Manifest::of("m", Some("mit"), &[path]).unwrap();
        (folder, manifest)
    }

    #[test]
    fn a_manifest_has_a_hash_for_every_chunk_and_the_same_whoever_signs_it() {
        let content: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| (i % 251) as u8).collect();
        let (_folder, manifest) = model(&content);
        let file = &manifest.files[0];
        let expected: Vec<_> = content.chunks(CHUNK_BYTES as usize).map(|c| *blake3::hash(c).as_bytes()).collect();
        assert_eq!((&file.chunks, file.bytes, manifest.bytes()), (&expected, CHUNK_BYTES * 2 + 5, file.bytes));
        let signers = [Identity::ephemeral(), Identity::ephemeral()];
        let read: Vec<_> =
            signers.iter().map(|by| SignedManifest::read(manifest.clone().sign(by).unwrap()).unwrap()).collect();
        assert_eq!((read[0].hash(), read[0].manifest()), (read[1].hash(), &manifest));
        assert_eq!(read[0].signer(), signers[0].peer_id());
        assert_eq!(SignedManifest::expect(read[0].bytes().to_vec(), [0; 32]), Err(ManifestError::OtherHash));
    }

    #[test]
    fn no_bit_of_it_can_change() {
        let (_folder, manifest) = model(&[7; 99]);
        let bytes = manifest.sign(&Identity::ephemeral()).unwrap();
        let hash = SignedManifest::read(bytes.clone()).unwrap().hash();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedManifest::expect(changed, hash).is_err(), "bit {bit}");
        }
        assert!((0..bytes.len()).all(|cut| SignedManifest::read(bytes[..cut].to_vec()).is_err()));
    }

    #[test]
    fn what_no_model_has_is_refused() {
        let (_folder, right) = model(&[7; 99]);
        let file = right.files[0].clone();
        let named = |name: &str| vec![SharedFile { name: name.into(), ..file.clone() }];
        for wrong in [
            Manifest { files: vec![], ..right.clone() },
            Manifest { files: named("../m.gguf"), ..right.clone() },
            Manifest { files: named(".hidden"), ..right.clone() },
            Manifest { files: vec![file.clone(), file.clone()], ..right.clone() },
            Manifest { files: vec![SharedFile { bytes: 2 * CHUNK_BYTES, ..file.clone() }], ..right.clone() },
            Manifest { files: vec![SharedFile { bytes: u64::MAX, ..file.clone() }; 2], ..right.clone() },
            Manifest { chunk_bytes: 3, ..right.clone() },
            Manifest { chunk_bytes: CHUNK_BYTES * 2, ..right.clone() },
            Manifest { name: "\u{1b}[2J".into(), ..right.clone() },
        ] {
            let signed = wrong.clone().sign(&Identity::ephemeral()).unwrap();
            assert!(matches!(SignedManifest::read(signed), Err(ManifestError::Senseless { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn giants_have_larger_chunks() {
        assert_eq!(chunk_bytes(1), CHUNK_BYTES);
        assert_eq!(chunk_bytes(CHUNKS * CHUNK_BYTES), CHUNK_BYTES);
        assert_eq!(chunk_bytes(700 << 30), 16 << 20);
        assert_eq!(chunk_bytes(u64::MAX), 1 << 48);
    }
}
