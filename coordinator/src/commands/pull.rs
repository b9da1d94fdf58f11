//! `pull`: models into the cache.

use std::{os::unix::ffi::OsStrExt, path::Path};

use qmesh_models::pull::ModelRef;

use super::{block_on_to_the_end, directories, fetch, shared};
use crate::{
    cli::{Failure, PullArgs},
    render::output,
};

pub(super) fn pull(args: &PullArgs) -> Result<(), Failure> {
    if args.give {
        let [ModelRef::Shared(link)] = &args.models[..] else {
            return Err(Failure::usage("--give is for one `qmesh:` link"));
        };
        let directories = directories()?;
        return block_on_to_the_end(shared::pull_and_give(link, &directories, args));
    }
    for model in &args.models {
        print(&fetch(model)?)?;
    }
    Ok(())
}

/// A path need not be UTF-8, and a script goes on with it.
pub(super) fn print(path: &Path) -> Result<(), Failure> {
    Ok(output::raw(&[path.as_os_str().as_bytes(), b"\n"].concat())?)
}
