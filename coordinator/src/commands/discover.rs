//! `discover`: the coordinators of the local network.

use qmesh_discovery::{FoundCoordinator, discover as ask};
use serde_json::{Value, json};

use crate::{
    cli::{DiscoverArgs, Failure},
    render::{
        output,
        table::{Align, table},
    },
};

pub(super) async fn discover(args: &DiscoverArgs) -> Result<(), Failure> {
    let found = ask(args.timeout).await.map_err(|error| Failure::failed(error.to_string()))?;
    if args.json {
        let listed: Vec<Value> = found.iter().map(listed).collect();
        output::json(&serde_json::to_string_pretty(&listed).map_err(anyhow::Error::from)?)?;
    } else if !found.is_empty() {
        let row = |found: &FoundCoordinator| {
            vec![found.mark.clone(), found.model.clone(), entrance(found).to_owned(), found.addresses.join(" ")]
        };
        let columns = ["coordinator", "model", "workers come", "addresses"].map(|heading| (heading, Align::Left));
        output::text(table(&columns, found.iter().map(row)))?;
    }
    if found.is_empty() {
        let text = format!("no coordinator has answered on the local network in {:.1} s", args.timeout.as_secs_f64());
        return Err(
            Failure::unreachable(text).with_advice("serve --listen 0.0.0.0:4433 on the machine that has the model")
        );
    }
    Ok(())
}

fn listed(found: &FoundCoordinator) -> Value {
    let is_open = found.open.is_some();
    json!({"coordinator": found.mark, "model": found.model, "open": is_open, "addresses": found.addresses})
}

/// How workers get in.
fn entrance(found: &FoundCoordinator) -> &'static str {
    if found.open.is_some() { "by asking" } else { "by ticket" }
}
