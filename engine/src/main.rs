//! `shard-worker`: lends this machine to a mesh. The command line is in `cli`, the rest in the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
