//! Arguments of `doctor`.

use std::net::SocketAddr;

use clap::{Args, builder::NonEmptyStringValueParser};

/// Arguments of `doctor`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator doctor
  coordinator doctor --listen 0.0.0.0:4433 --host 0.0.0.0
  coordinator doctor --json

Addresses are those that `serve` would be given. It writes up to 64 MB into the cache folder and deletes them again.
Exit codes: 0 all is well, or could be better; 1 something does not work; 2 wrong usage.")]
pub struct DoctorArgs {
    /// Address of the HTTP API, as for `serve`
    #[arg(
        long, value_name = "HOST", env = "QMESH_HOST", default_value = "127.0.0.1",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub host: String,
    /// Port of the HTTP API, as for `serve`
    #[arg(long, env = "QMESH_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Address for workers (UDP), as for `serve`
    #[arg(long, value_name = "IP:PORT", env = "QMESH_LISTEN", default_value = "127.0.0.1:4433")]
    pub listen: SocketAddr,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}
