//! The way to the coordinator: at the addresses that are known or, where it has moved, wherever it is found.

use std::time::{Duration, Instant};

use qmesh_discovery::DhtError;
use qmesh_net::{Connection, Endpoint, FoundBy, Introduced, Introducer, NetError, PeerId, Ticket, WayFound};
use tokio::{task::JoinSet, time::sleep};

use super::config::{Search, WayIn};

/// A coordinator, and how it was found.
pub(super) struct Reached {
    pub(super) connection: Connection,
    pub(super) found: WayFound,
    /// The rendezvous that has brought the two together.
    pub(super) by: Option<Introducer>,
}

impl Reached {
    /// Dialled, at an address that was found since `start`.
    pub(super) fn at_address(connection: Connection, by: FoundBy, start: Instant) -> Self {
        Self { connection, found: WayFound::new(by, start.elapsed()), by: None }
    }
}

/// Connects to the coordinator that `way_in` names, first where it was found before.
///
/// # Errors
/// It answers nowhere, or somebody else does.
pub(super) async fn reach(
    endpoint: &Endpoint,
    way_in: &WayIn,
    before: &[String],
    search: &Search,
) -> Result<Reached, NetError> {
    let coordinator = way_in.coordinator();
    let mut tries = JoinSet::new();
    let (dialling, addresses) = (endpoint.clone(), [before, way_in.addresses()].concat());
    tries.spawn(async move {
        let start = Instant::now();
        let connection = dialling.dial(&addresses, coordinator).await.map_err(Miss::Addresses)?;
        Ok(Reached::at_address(connection, FoundBy::Address, start))
    });
    if search.lan {
        tries.spawn(on_the_lan(endpoint.clone(), coordinator));
    }
    if let (Some(dht), WayIn::Ticket(ticket)) = (&search.dht, way_in) {
        tries.spawn(on_the_dht(endpoint.clone(), dht.clone(), ticket.clone()));
    }
    if let WayIn::Ticket(ticket) = way_in
        && !ticket.rendezvous.is_empty()
    {
        tries.spawn(by_rendezvous(endpoint.clone(), ticket.clone()));
    }
    let mut misses = Vec::new();
    while let Some(tried) = tries.join_next().await {
        match tried {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(miss)) => misses.push(miss),
            // Nothing aborts them but the end of this.
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    Err(nowhere(misses))
}

/// Why one way did not lead there.
enum Miss {
    Addresses(NetError),
    Lan,
    Dht(String),
    Rendezvous(NetError),
}

/// Asks the network, once the addresses have had a chance to answer.
async fn on_the_lan(endpoint: Endpoint, coordinator: PeerId) -> Result<Reached, Miss> {
    sleep(HEAD_START).await;
    let start = Instant::now();
    let addresses = qmesh_discovery::find(coordinator, PATIENCE).await.map_err(|error| {
        tracing::debug!(%error, "the local network cannot be asked");
        Miss::Lan
    })?;
    tracing::debug!(?addresses, "the local network says where the coordinator is");
    let connection = endpoint.dial(&addresses, coordinator).await.map_err(|_| Miss::Lan)?;
    Ok(Reached::at_address(connection, FoundBy::LocalNetwork, start))
}

/// Asks the DHT, once addresses and network have had a chance to answer.
async fn on_the_dht(endpoint: Endpoint, dht: qmesh_discovery::Dht, ticket: Ticket) -> Result<Reached, Miss> {
    sleep(HEAD_START_OF_NEIGHBOURS).await;
    let start = Instant::now();
    let missed = |error: DhtError| Miss::Dht(format!("nor is it found on the DHT: {error}"));
    let addresses = dht.find(&ticket).await.map_err(missed)?;
    tracing::debug!(?addresses, "the DHT says where the coordinator is");
    if addresses.is_empty() {
        return Err(Miss::Dht("nor does the DHT know of it (coordinator serve --dht)".to_owned()));
    }
    let nobody = |_| Miss::Dht(format!("nor does it answer where it is by the DHT ({})", addresses.join(", ")));
    // From now on its packets get in here.
    let places = addresses.iter().filter_map(|address| address.parse().ok()).collect();
    let meeting = endpoint.meet(ticket.coordinator, places, None);
    let asked = async {
        sleep(ALONE).await;
        // Both may be behind NATs: it is to send as well.
        dht.seek(&ticket, endpoint.peer_id(), endpoint.local_addr()).await.map_err(missed)?;
        // A dial is given up before it may have looked.
        match meeting.dial(&endpoint, &addresses).await {
            Ok(connection) => Ok(connection),
            Err(_) => meeting.dial(&endpoint, &addresses).await.map_err(nobody),
        }
    };
    let connection = tokio::select! {
        Ok(connection) = endpoint.dial(&addresses, ticket.coordinator) => connection,
        asked = asked => asked?,
    };
    Ok(Reached::at_address(connection, FoundBy::Dht, start))
}

/// Asks those who bring workers together with this coordinator, once its addresses have had a chance to answer.
async fn by_rendezvous(endpoint: Endpoint, ticket: Ticket) -> Result<Reached, Miss> {
    sleep(HEAD_START).await;
    let start = Instant::now();
    let Introduced { connection, by } = endpoint.find(&ticket).await.map_err(Miss::Rendezvous)?;
    let found = match &by {
        None => FoundBy::Call,
        Some(_) if connection.is_relayed() => FoundBy::Relay,
        Some(_) => FoundBy::Rendezvous,
    };
    Ok(Reached { connection, found: WayFound::new(found, start.elapsed()), by })
}

/// What is wrong at the addresses, which says more than that nobody else answers, and where else it was looked for.
fn nowhere(misses: Vec<Miss>) -> NetError {
    let (mut error, mut lan, mut dht, mut rendezvous) = (None, None, None, None);
    for miss in misses {
        match miss {
            Miss::Addresses(wrong) => error = Some(wrong),
            Miss::Lan => lan = Some("nor does it answer on the local network (mDNS)".to_owned()),
            Miss::Dht(text) => dht = Some(text),
            Miss::Rendezvous(NetError::Unreachable { text, .. }) => rendezvous = Some(text),
            Miss::Rendezvous(error) => rendezvous = Some(error.to_string()),
        }
    }
    let mut error = error.expect("the addresses are always tried");
    if let NetError::Unreachable { text, .. } = &mut error {
        for other in rendezvous.into_iter().chain(lan).chain(dht) {
            text.push_str("; ");
            text.push_str(&other);
        }
    }
    error
}

/// Addresses that are right answer within this.
const HEAD_START: Duration = Duration::from_millis(250);
/// A coordinator of the local network has answered within this; nodes of the DHT need not hear of it then.
const HEAD_START_OF_NEIGHBOURS: Duration = Duration::from_secs(1);
/// How long the coordinator is dialled where it is by the DHT before it is asked to send as well.
const ALONE: Duration = Duration::from_millis(1500);
/// Coordinators that are there answer within a second; a busy wireless network may lose the first question.
const PATIENCE: Duration = Duration::from_secs(4);
