//! `pull`: models into the cache.

use std::io::{Write, stdout};

use super::fetch;
use crate::cli::{Failure, PullArgs};

pub(super) fn pull(args: &PullArgs) -> Result<(), Failure> {
    for model in &args.models {
        let path = fetch(model)?;
        writeln!(stdout().lock(), "{}", path.display())?;
    }
    Ok(())
}
