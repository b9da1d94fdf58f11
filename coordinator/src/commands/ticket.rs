//! `ticket`: the join line of a coordinator that runs on this machine, for the user who runs it.

use std::io::{Write, stdout};

use serde_json::{Value, json};

use super::directories;
use crate::{
    cli::{Failure, TicketArgs},
    invitation::Invitation,
    render::count,
};

pub(super) fn ticket(args: &TicketArgs) -> Result<(), Failure> {
    let mut out = stdout().lock();
    if args.json {
        let found = invitations(args.port)?;
        if found.is_empty() {
            return Err(nobody(args.port));
        }
        let shown: Vec<Value> = found.iter().map(shown).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&shown).map_err(anyhow::Error::from)?)?;
    } else {
        writeln!(out, "{}", invitation(args.port)?.join)?;
    }
    Ok(())
}

/// The one coordinator of this user that runs on this machine, or the one whose API has this port.
///
/// # Errors
/// There is none, or there are several.
pub(super) fn invitation(port: Option<u16>) -> Result<Invitation, Failure> {
    let mut found = invitations(port)?;
    match found.len() {
        0 => Err(nobody(port)),
        1 => Ok(found.remove(0)),
        _ => Err(which(&found)),
    }
}

fn invitations(port: Option<u16>) -> Result<Vec<Invitation>, Failure> {
    let mut found = Invitation::all(directories()?.keys()).map_err(|e| Failure::failed(e.to_string()))?;
    found.retain(|invitation| port.is_none_or(|port| port == invitation.api.port()));
    Ok(found)
}

/// What is for others to read: all but the owner's key.
fn shown(invitation: &Invitation) -> Value {
    let Invitation { model, api, process, join, expires_unix, owner: _ } = invitation;
    json!({"model": model, "api": api, "process": process, "join": join, "expires_unix": expires_unix})
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
