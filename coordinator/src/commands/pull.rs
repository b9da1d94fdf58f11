//! `pull`: models into the cache.

use std::os::unix::ffi::OsStrExt;

use super::fetch;
use crate::{
    cli::{Failure, PullArgs},
    render::output,
};

pub(super) fn pull(args: &PullArgs) -> Result<(), Failure> {
    for model in &args.models {
        let path = fetch(model)?;
        // A path need not be UTF-8, and a script goes on with it.
        output::raw(&[path.as_os_str().as_bytes(), b"\n"].concat())?;
    }
    Ok(())
}
