//! The way to the coordinator: at the addresses of the ticket or, where it has moved, wherever it is on the local network.

use std::time::{Duration, Instant};

use qmesh_net::{Connection, Endpoint, NetError, Ticket};
use tokio::time::sleep;

use super::config::Search;

/// How the coordinator was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tier {
    /// At an address of the ticket.
    Ticket,
    /// By multicast DNS, after so long.
    Lan(Duration),
}

/// Connects to the coordinator that the ticket names.
///
/// # Errors
/// It answers nowhere, or somebody else does.
pub(super) async fn reach(
    endpoint: &Endpoint,
    ticket: &Ticket,
    search: Search,
) -> Result<(Connection, Tier), NetError> {
    let known = endpoint.dial(&ticket.addresses, ticket.coordinator);
    if search == Search::Addresses {
        return known.await.map(|connection| (connection, Tier::Ticket));
    }
    let found = on_the_lan(endpoint, ticket);
    tokio::pin!(known, found);
    tokio::select! {
        connection = &mut known => match connection {
            Ok(connection) => Ok((connection, Tier::Ticket)),
            // What is wrong at the addresses says more than that nobody else answers.
            Err(error) => found.await.ok_or_else(|| nowhere(error)),
        },
        place = &mut found => match place {
            Some(place) => Ok(place),
            None => known.await.map(|connection| (connection, Tier::Ticket)).map_err(nowhere),
        },
    }
}

/// Asks the network, once the addresses have had a chance to answer.
async fn on_the_lan(endpoint: &Endpoint, ticket: &Ticket) -> Option<(Connection, Tier)> {
    sleep(HEAD_START).await;
    let start = Instant::now();
    let addresses = match qmesh_discovery::find(ticket.coordinator, PATIENCE).await {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::debug!(%error, "the local network cannot be asked");
            return None;
        }
    };
    tracing::debug!(?addresses, "the local network says where the coordinator is");
    let connection = endpoint.dial(&addresses, ticket.coordinator).await.ok()?;
    Some((connection, Tier::Lan(start.elapsed())))
}

/// The same error, where the local network was asked as well.
fn nowhere(mut error: NetError) -> NetError {
    if let NetError::Unreachable { text, .. } = &mut error {
        text.push_str("; nor does it answer on the local network (mDNS)");
    }
    error
}

/// Addresses that are right answer within this.
const HEAD_START: Duration = Duration::from_millis(250);
/// Coordinators that are there answer within a second; a busy wireless network may lose the first question.
const PATIENCE: Duration = Duration::from_secs(4);
