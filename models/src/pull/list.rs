//! What the cache holds, and what the catalog would add to it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{part, slot::SlotRecord};
use crate::{catalog, directories::Directories};

/// A model in the cache, or one of the catalog that could be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CachedModel {
    /// What asks for it; of a URL, without its query.
    pub name: String,
    /// Its file, or its first file; there only when it is complete.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
    /// How much of it is there.
    pub state: CacheState,
}

/// How much of a model is in the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CacheState {
    /// All of it.
    Complete,
    /// Some: a pull was interrupted, or is under way.
    Partial,
    /// Nothing: a model of the catalog that was not pulled.
    Absent,
}

/// The catalog's models, then what else was pulled, by name. What cannot be read is left out.
pub fn list(directories: &Directories) -> Vec<CachedModel> {
    let models = directories.models();
    let mut cached: Vec<_> = catalog::ALL
        .iter()
        .map(|model| cached(model.name, &models.join("catalog").join(model.name), &[model.file.into()]))
        .collect();
    let hub = subfolders(&models.join("hub")).into_iter().flat_map(|org| subfolders(&org));
    let mut seen = BTreeSet::new();
    for folder in hub.chain(subfolders(&models.join("web"))) {
        for record in records(&folder) {
            let model = self::cached(&record.name, &folder, &record.files);
            if model.state != CacheState::Absent && seen.insert(model.path.clone()) {
                cached.push(model);
            }
        }
    }
    cached
}

fn cached(name: &str, folder: &Path, files: &[String]) -> CachedModel {
    let bytes = |path: PathBuf| fs::metadata(path).map(|file| file.len()).unwrap_or(0);
    let paths: Vec<_> = files.iter().map(|file| folder.join(file)).collect();
    let there: u64 = paths.iter().map(|path| bytes(path.clone()) + bytes(part::part_path(path))).sum();
    let state = match paths.iter().all(|path| path.is_file()) {
        true => CacheState::Complete,
        false if there > 0 => CacheState::Partial,
        false => CacheState::Absent,
    };
    CachedModel { name: name.into(), path: folder.join(&files[0]), bytes: there, state }
}

fn records(folder: &Path) -> Vec<SlotRecord> {
    let refs = entries(folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "ref"));
    refs.filter_map(|path| SlotRecord::read(&path)).collect()
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    entries(folder).into_iter().filter(|path| path.is_dir()).collect()
}

/// The folder's entries in order; none where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
