//! Manifests that are kept: one takes as long to make as reading its model does.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use qmesh_net::Identity;

use crate::{
    error::{ShareError, in_file},
    manifest::{Manifest, SignedManifest},
};

/// The manifest of a model with these files, signed by this machine: the one that is kept in `folder`, if no file has changed since,
/// or a new one, of whose making `watch` is told as by [`Manifest::watched`]. Blocks.
///
/// # Errors
/// A file cannot be read, or the model has what no manifest can say.
pub fn signed_manifest(
    folder: &Path,
    (name, licence): (&str, Option<&str>),
    paths: &[PathBuf],
    identity: &Identity,
    watch: &(dyn Fn(u64, u64) + Sync),
) -> Result<SignedManifest, ShareError> {
    let kept = folder.join(stamp(paths)?);
    let known = fs::read(&kept).ok().and_then(|bytes| SignedManifest::read(bytes).ok());
    if let Some(known) = known.filter(|known| known.signer() == identity.peer_id()) {
        return Ok(known);
    }
    let signed = Manifest::watched((name, licence), paths, watch)?.sign(identity)?;
    // Where it cannot be kept, the next time takes as long as this one.
    if let Err(error) = fs::create_dir_all(folder).and_then(|()| fs::write(&kept, &signed)) {
        tracing::info!(path = %kept.display(), %error, "cannot keep a manifest");
    }
    Ok(SignedManifest::read(signed)?)
}

/// Tells these files as they are now from all others: their places, lengths and times of change.
fn stamp(paths: &[PathBuf]) -> Result<String, ShareError> {
    let mut hasher = blake3::Hasher::new_derive_key("qmesh kept manifest v1");
    for path in paths {
        let read = || -> io::Result<_> {
            let file = fs::metadata(path)?;
            Ok((path.canonicalize()?, file.len(), file.modified()?))
        };
        let (place, bytes, modified) = read().map_err(in_file(path))?;
        let modified = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        hasher.update(place.as_os_str().as_encoded_bytes()).update(&[0]);
        hasher.update(&bytes.to_le_bytes()).update(&modified.to_le_bytes());
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_manifest_is_made_once_and_anew_when_a_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, path) = (folder.path().join("kept"), folder.path().join("m.gguf"));
        let identity = Identity::ephemeral();
        let made = |by: &Identity| {
            let told = Mutex::new(Vec::new());
            let watch = |done, total| told.lock().unwrap().push((done, total));
            let signed = signed_manifest(&kept, ("m", None), std::slice::from_ref(&path), by, &watch).unwrap();
            let (told, bytes) = (told.into_inner().unwrap(), fs::metadata(&path).unwrap().len());
            assert!(told.is_empty() || told == [(0, bytes), (bytes, bytes)], "{told:?}");
            (!told.is_empty(), signed.hash())
        };
        fs::write(&path, "one").unwrap();
        let (begun, first) = made(&identity);
        assert!(begun && made(&identity) == (false, first));
        assert_eq!(made(&Identity::ephemeral()), (true, first), "another one signs for itself");
        fs::write(&path, "other").unwrap();
        let (begun, second) = made(&identity);
        assert!(begun && second != first);
    }
}
