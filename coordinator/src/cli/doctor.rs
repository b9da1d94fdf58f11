//! Arguments of `doctor`.

use clap::Args;

use super::AddressArgs;

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator doctor
  coordinator doctor --listen 0.0.0.0:4433 --host 0.0.0.0
  coordinator doctor --listen 0.0.0.0:4433 --ask 198.51.100.7:4433
  coordinator doctor --json

Addresses are those that `serve` would be given. It writes up to 64 MB into the cache folder and deletes them again.
Exit codes: 0 all is well, or could be better; 1 something does not work; 2 wrong usage.")]
pub struct DoctorArgs {
    /// Where `serve` would listen.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// A coordinator or worker elsewhere, which says whether others can reach this machine
    #[arg(long, value_name = "HOST:PORT", env = "QMESH_ASK")]
    pub ask: Option<String>,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}
