//! Where the coordinator is for its workers: at addresses that change, or where nobody reaches it but by way of a rendezvous.

use std::{collections::BTreeSet, time::Instant};

use qmesh_discovery::Interfaces;
use qmesh_net::{Connection, Endpoint, Message, PeerId, PlanEpoch, Seeker};
use tokio::sync::mpsc;

use super::MeshTask;
use crate::mesh::{
    config::Relaying,
    formation::{
        Joined, WorkerId,
        links::{LinkEvent, WorkerLink},
    },
    seekers::Passing,
};

impl MeshTask {
    /// A worker that has joined, with where it is for others: QUIC knows one that is relayed by an address that no host has.
    pub(super) fn located(&self, joined: Joined, connection: &Connection) -> Joined {
        let seen = if connection.is_relayed() { self.seekers.address_of(joined.peer) } else { None };
        Joined { address: seen.unwrap_or(joined.address), is_rendezvous: self.is_rendezvous(connection), ..joined }
    }

    /// Whether a worker is one of those at which this coordinator calls.
    fn is_rendezvous(&self, connection: &Connection) -> bool {
        self.calling.as_ref().is_some_and(|calling| calling.is_at(connection.remote_address()))
    }

    /// A rendezvous says who has asked it for this coordinator.
    pub(super) fn sought(&mut self, now: Instant, worker: WorkerId, seeker: Seeker) {
        let Some(link) = self.links.get(&worker) else { return };
        let rendezvous = link.connection.remote_address();
        if !self.is_rendezvous(&link.connection) {
            return tracing::warn!("{} is no rendezvous of this mesh", self.conductor.name_of(worker));
        }
        let passing = match self.relaying {
            Relaying::On(_) => Passing::Granted,
            Relaying::Off => Passing::Never,
        };
        for message in self.seekers.sought(now, &self.endpoint, rendezvous, seeker, passing) {
            self.send(worker, message);
        }
    }

    /// This machine has another address, and these peers are called from there.
    pub(super) fn displaced(&mut self, now: Instant, peers: &BTreeSet<PeerId>) {
        let are_gone = |link: &WorkerLink| peers.contains(&link.connection.peer());
        let gone: Vec<WorkerId> = self.links.iter().filter(|(_, link)| are_gone(link)).map(|(&id, _)| id).collect();
        for worker in &gone {
            self.links.remove(worker);
        }
        for &peer in peers {
            self.entry.saw(peer);
        }
        self.conductor.displaced(now, &gone);
        self.publish(now);
    }

    /// Nobody passes packets on any more for this plan.
    pub(super) fn revoke(&mut self, epoch: PlanEpoch) {
        self.endpoint.revoke(epoch);
        let rendezvous = self.links.iter().filter(|(_, link)| self.is_rendezvous(&link.connection));
        let rendezvous: Vec<WorkerId> = rendezvous.map(|(&worker, _)| worker).collect();
        for worker in rendezvous {
            self.send(worker, Message::Revoke { epoch });
        }
    }
}

/// Lets workers know where this machine is whenever its addresses change. Who listens at one address alone is found nowhere else.
pub(super) async fn follow_interfaces(endpoint: Endpoint, events: mpsc::Sender<LinkEvent>) {
    if !endpoint.local_addr().ip().is_unspecified() {
        return;
    }
    let mut interfaces = Interfaces::watch();
    loop {
        let addresses = interfaces.changed().await;
        tracing::info!(?addresses, "this machine's addresses have changed");
        let peers = endpoint.is_at(addresses);
        if !peers.is_empty() && events.send(LinkEvent::Displaced { peers }).await.is_err() {
            return;
        }
    }
}
