//! Tensors that the user already has: the model files of `--model-dir`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use blake3::Hash;
use qmesh_models::{gguf::Gguf, spec::TensorSpec};

use super::store::{Owner, Place};

/// The headers of every readable model file in some folders.
#[derive(Debug, Default)]
pub(super) struct LocalModels(Vec<Gguf>);

impl LocalModels {
    /// Reads the headers of all `*.gguf` directly in `folders`; what cannot be read is logged and left out.
    pub(super) fn scan(folders: &[PathBuf]) -> Self {
        let mut paths: Vec<_> = folders.iter().flat_map(|folder| model_files(folder)).collect();
        paths.sort_unstable();
        let mut models: Vec<Gguf> = Vec::new();
        for path in paths {
            // A part of a split model opens all of them.
            if models.iter().any(|gguf| gguf.parts().iter().any(|part| part.path == path)) {
                continue;
            }
            match Gguf::open(&path) {
                Ok(gguf) => models.push(gguf),
                Err(error) => tracing::warn!(%error, "left a model file out"),
            }
        }
        Self(models)
    }

    /// Where one of the files has exactly this tensor: name, type, shape and every byte. A piece of a fused tensor is looked
    /// for where it lies in the coordinator's file.
    pub(super) fn find(&self, tensor: &TensorSpec, hash: Hash) -> Option<Place> {
        self.0.iter().find_map(|gguf| {
            let entry = gguf.tensor(&tensor.name)?;
            let (cols, rows) = entry.ne.split_first()?;
            let (rows, bytes) = (rows.iter().product::<u64>(), entry.bytes?);
            let same = entry.kind.0 == tensor.dtype.ggml_id() && *cols == tensor.cols as u64;
            let offset = if rows == tensor.rows as u64 { entry.offset } else { tensor.offset };
            let inside =
                offset >= entry.offset && offset.checked_add(tensor.bytes)? <= entry.offset.checked_add(bytes)?;
            let path = gguf.parts().get(entry.part).filter(|_| same && inside)?.path.clone();
            let place = Place { path, offset, hash, owner: Owner::User };
            place.holds(tensor.bytes).then_some(place)
        })
    }
}

fn model_files(folder: &Path) -> Vec<PathBuf> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
            paths.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect()
        }
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "cannot read the model folder");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, process::Command};

    use qmesh_models::{spec::TensorRole, tensor::TensorType};

    use super::*;

    const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny");

    #[test]
    fn only_the_very_same_tensor_counts() {
        let folders = [PathBuf::from(TINY), PathBuf::from("/nowhere")];
        let models = LocalModels::scan(&folders);
        let gguf = Gguf::open(Path::new(TINY).join("llama.gguf")).unwrap();
        let entry = gguf.tensor("output_norm.weight").unwrap();
        let file = fs::read(&gguf.parts()[0].path).unwrap();
        let start = usize::try_from(entry.offset).unwrap();
        let bytes = entry.bytes.unwrap();
        let hash = blake3::hash(&file[start..start + usize::try_from(bytes).unwrap()]);
        let tensor = TensorSpec {
            role: TensorRole::OutputNorm,
            name: entry.name.clone(),
            rows: 1,
            cols: usize::try_from(entry.ne[0]).unwrap(),
            dtype: TensorType::F32,
            part: 0,
            offset: 0,
            bytes,
        };
        let place = models.find(&tensor, hash).unwrap();
        assert!(place.holds(bytes) && place.owner == Owner::User);

        assert_eq!(models.find(&tensor, blake3::hash(b"other bytes")), None);
        assert_eq!(models.find(&TensorSpec { name: "no.such".into(), ..tensor.clone() }, hash), None);
        assert_eq!(models.find(&TensorSpec { dtype: TensorType::F16, ..tensor }, hash), None);
    }

    #[test]
    fn what_is_no_model_file_is_left_out_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Command::new("mkfifo").arg(folder.path().join("fifo.gguf")).status().unwrap().success());
        fs::create_dir(folder.path().join("folder.gguf")).unwrap();
        let odd = folder.path().join(OsStr::from_bytes(b"caf\xe9.gguf"));
        fs::copy(Path::new(TINY).join("llama.gguf"), &odd).unwrap();
        let models = LocalModels::scan(&[folder.path().to_owned()]);
        assert_eq!(models.0.iter().map(|gguf| &gguf.parts()[0].path).collect::<Vec<_>>(), [&odd]);
    }

    #[test]
    fn pieces_of_a_fused_tensor_are_found() {
        let path = Path::new(TINY).join("phi3.gguf");
        let file = fs::read(&path).unwrap();
        let spec = qmesh_models::family::spec(&Gguf::open(&path).unwrap()).unwrap();
        let models = LocalModels::scan(&[PathBuf::from(TINY)]);
        for tensor in spec.tensors.iter().filter(|t| t.name.contains("attn_qkv")) {
            let start = usize::try_from(tensor.offset).unwrap();
            let hash = blake3::hash(&file[start..start + usize::try_from(tensor.bytes).unwrap()]);
            assert_eq!(models.find(tensor, hash).map(|place| place.offset), Some(tensor.offset), "{tensor:?}");
        }
    }
}
