//! What the cache holds, and what the catalog would add to it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{part, slot::SlotRecord};
use crate::{catalog, directories::Directories, files::bytes_on_disk};

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
    let others = ["web", "shared"].into_iter().flat_map(|kind| subfolders(&models.join(kind)));
    for folder in hub.chain(others) {
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
    let paths: Vec<_> = files.iter().map(|file| folder.join(file)).collect();
    let there: u64 = paths.iter().map(|path| bytes_on_disk(path) + bytes_on_disk(&part::part_path(path))).sum();
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
