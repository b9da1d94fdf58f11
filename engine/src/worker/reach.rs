//! The way to the coordinator: at the addresses that are known or, where it has moved, wherever it is on the local network.

use std::time::{Duration, Instant};

use qmesh_net::{Connection, Endpoint, NetError, PeerId};
use tokio::time::sleep;

use super::config::{Search, WayIn};

/// How the coordinator was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tier {
    /// At an address that was known.
    Known,
    /// By multicast DNS, after so long.
    Lan(Duration),
}

/// Connects to the coordinator that `way_in` names.
///
/// # Errors
/// It answers nowhere, or somebody else does.
pub(super) async fn reach(endpoint: &Endpoint, way_in: &WayIn, search: Search) -> Result<(Connection, Tier), NetError> {
    let known = endpoint.dial(way_in.addresses(), way_in.coordinator());
    if search == Search::Addresses {
        return known.await.map(|connection| (connection, Tier::Known));
    }
    let found = on_the_lan(endpoint, way_in.coordinator());
    tokio::pin!(known, found);
    tokio::select! {
        connection = &mut known => match connection {
            Ok(connection) => Ok((connection, Tier::Known)),
            // What is wrong at the addresses says more than that nobody else answers.
            Err(error) => found.await.ok_or_else(|| nowhere(error)),
        },
        place = &mut found => match place {
            Some(place) => Ok(place),
            None => known.await.map(|connection| (connection, Tier::Known)).map_err(nowhere),
        },
    }
}

/// Asks the network, once the addresses have had a chance to answer.
async fn on_the_lan(endpoint: &Endpoint, coordinator: PeerId) -> Option<(Connection, Tier)> {
    sleep(HEAD_START).await;
    let start = Instant::now();
    let addresses = match qmesh_discovery::find(coordinator, PATIENCE).await {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::debug!(%error, "the local network cannot be asked");
            return None;
        }
    };
    tracing::debug!(?addresses, "the local network says where the coordinator is");
    let connection = endpoint.dial(&addresses, coordinator).await.ok()?;
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
