//! Arguments of the commands by which workers come in, or go: `ticket`, `admit`, `workers`.

use clap::{Args, Subcommand};

/// Arguments of `ticket`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator ticket
  coordinator ticket --port 8081
  coordinator ticket --json

It works for the user who runs the coordinator, on the same machine. Whoever has the line can add workers, which see \
prompts and answers: keep it from others.")]
pub struct TicketArgs {
    /// Port of the coordinator's HTTP API, where several run here
    #[arg(long, env = "QMESH_PORT")]
    pub port: Option<u16>,
    /// Print JSON: all that run here, or the one with that port
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Arguments of `admit`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator admit attic               asks whether its screen shows the code that is shown here
  coordinator admit k7m2-qx4f-a3bc      the code that you read on its screen
  coordinator admit                     the only one that asks

Anybody can ask by any name, but only one worker's screen shows the code. Once admitted it comes back without being asked \
for, until `coordinator workers revoke`. It works for the user who runs the coordinator, on the same machine.")]
pub struct AdmitArgs {
    /// The worker, by the code on its screen or by its name [default: the only one that asks]
    pub who: Option<String>,
    /// Do not ask whether the codes are the same: somebody has looked
    #[arg(short, long, env = "QMESH_YES")]
    pub yes: bool,
    /// Port of the coordinator's HTTP API, where several run here
    #[arg(long, env = "QMESH_PORT")]
    pub port: Option<u16>,
}

/// Arguments of `workers`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator workers ls
  coordinator workers revoke attic

It works for the user who runs the coordinator, on the same machine.")]
pub struct WorkersArgs {
    /// What about them.
    #[command(subcommand)]
    pub command: WorkersCommand,
}

/// What about workers.
#[derive(Debug, Subcommand)]
pub enum WorkersCommand {
    /// List who asks to join, who is here, and whose keys are remembered
    Ls(ListWorkersArgs),
    /// Send away a worker that asks to join; it may ask again
    Refuse(WorkerArgs),
    /// Take a worker's right to join away: it goes at once, and no ticket brings it back
    Revoke(WorkerArgs),
    /// Make a revoked worker a stranger again, which may ask or come with a ticket
    Forget(WorkerArgs),
}

/// Arguments of `workers ls`.
#[derive(Args, Debug)]
pub struct ListWorkersArgs {
    /// Port of the coordinator's HTTP API, where several run here
    #[arg(long, env = "QMESH_PORT")]
    pub port: Option<u16>,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Arguments of what is decided about one worker.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// The worker, by its name, or by its code or key where several have that name
    pub who: String,
    /// Port of the coordinator's HTTP API, where several run here
    #[arg(long, env = "QMESH_PORT")]
    pub port: Option<u16>,
}
