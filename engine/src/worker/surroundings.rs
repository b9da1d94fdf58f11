//! What a worker notices during a stay that no message or link tells: other addresses, a coordinator that calls from another one, and
//! others that ask for it.

use std::{
    collections::BTreeSet,
    future::pending,
    net::{IpAddr, SocketAddr},
};

use qmesh_discovery::Interfaces;
use qmesh_net::{Calls, Connection, Endpoint, NetError, PeerId, Seeker, Seekers};
use tokio::task::JoinSet;

use super::{
    config::WayIn,
    rendezvous::{next_seeker, seekers},
};

/// Watches them for as long as a stay lasts.
pub(super) struct Surroundings {
    endpoint: Endpoint,
    coordinator: PeerId,
    interfaces: Option<Interfaces>,
    calls: Calls,
    seekers: Option<Seekers>,
    /// To the coordinator, where it calls from.
    dials: JoinSet<Result<Connection, NetError>>,
}

/// What was noticed.
pub(super) enum Notice {
    /// This machine has these addresses now.
    Addresses(BTreeSet<IpAddr>),
    /// The coordinator is at another address, where this is a connection to it.
    Coordinator(Connection),
    /// Somebody asks this worker for the coordinator.
    Seeker(Seeker),
}

impl Surroundings {
    /// Of a worker that is connected to its coordinator, whose way in it knows.
    pub(super) fn of(endpoint: &Endpoint, coordinator: &Connection, way_in: &WayIn) -> Self {
        Self {
            // Who listens at one address alone is found nowhere else.
            interfaces: endpoint.local_addr().ip().is_unspecified().then(Interfaces::watch),
            calls: endpoint.calls_from(coordinator),
            seekers: seekers(endpoint, way_in),
            dials: JoinSet::new(),
            coordinator: coordinator.peer(),
            endpoint: endpoint.clone(),
        }
    }

    /// The next thing that was noticed. Cancel-safe.
    pub(super) async fn next(&mut self) -> Notice {
        loop {
            tokio::select! {
                addresses = changed(&mut self.interfaces) => return Notice::Addresses(addresses),
                address = self.calls.next(), if self.dials.is_empty() => self.dial(address),
                Some(dialled) = self.dials.join_next() => {
                    // Whoever called from there is not the coordinator, or does not answer.
                    if let Ok(Ok(connection)) = dialled {
                        return Notice::Coordinator(connection);
                    }
                }
                seeker = next_seeker(&mut self.seekers) => return Notice::Seeker(seeker),
            }
        }
    }

    fn dial(&mut self, address: SocketAddr) {
        let (endpoint, coordinator) = (self.endpoint.clone(), self.coordinator);
        self.dials.spawn(async move { endpoint.dial(&[address.to_string()], coordinator).await });
    }
}

/// This machine's addresses once they are others than before. Cancel-safe.
async fn changed(interfaces: &mut Option<Interfaces>) -> BTreeSet<IpAddr> {
    match interfaces {
        Some(interfaces) => interfaces.changed().await.clone(),
        None => pending().await,
    }
}
