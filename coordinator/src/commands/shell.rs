//! `completions` and `man`: the command line as shells and manuals know it.

use std::io::{Write, stdout};

use crate::cli::{self, CompletionsArgs, Failure, ManArgs};

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::description(), "coordinator", &mut script);
    Ok(stdout().lock().write_all(&script)?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    let refused = |error| Failure::failed(format!("cannot write manual pages to {}: {error}", folder.display()));
    clap_mangen::generate_to(cli::description(), folder).map_err(refused)
}
