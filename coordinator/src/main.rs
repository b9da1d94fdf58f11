//! The `coordinator` binary: all that it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    qmesh_coordinator::commands::main()
}
