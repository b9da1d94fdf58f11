//! `ticket`: the join line of a coordinator that runs on this machine, for the user who runs it.

use std::io::{Write, stdout};

use super::directories;
use crate::{
    cli::{Failure, TicketArgs},
    invitation::Invitation,
    render::count,
};

pub(super) fn ticket(args: &TicketArgs) -> Result<(), Failure> {
    let mut found = Invitation::all(directories()?.keys()).map_err(|e| Failure::failed(e.to_string()))?;
    found.retain(|invitation| args.port.is_none_or(|port| port == invitation.api.port()));
    let mut out = stdout().lock();
    match &found[..] {
        [] => Err(nobody(args.port)),
        _ if args.json => {
            writeln!(out, "{}", serde_json::to_string_pretty(&found).map_err(anyhow::Error::from)?)?;
            Ok(())
        }
        [invitation] => {
            writeln!(out, "{}", invitation.join)?;
            Ok(())
        }
        several => Err(which(several)),
    }
}

fn nobody(port: Option<u16>) -> Failure {
    let whose = port.map(|port| format!(" with its API on port {port}")).unwrap_or_default();
    Failure::unreachable(format!("no coordinator of this user runs on this machine{whose}"))
        .with_advice("`coordinator serve` on the machine that has the model; it prints the join line")
}

fn which(several: &[Invitation]) -> Failure {
    let one = |invitation: &Invitation| format!("{} on port {}", invitation.model, invitation.api.port());
    let all: Vec<_> = several.iter().map(one).collect();
    Failure::usage(format!("{} run here: {}", count(several.len(), "coordinator"), all.join(", ")))
        .with_advice(format!("--port {}", several[0].api.port()))
}
