//! A worker as a rendezvous: it hears the calls of a coordinator that nobody reaches, tells it who asks for it, and passes packets on
//! where the coordinator grants that.

use std::future::pending;

use qmesh_net::{Connection, Endpoint, Grant, PlanEpoch, Seeker, Seekers};

use super::config::WayIn;

/// What the coordinator wants of its rendezvous.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Errand {
    /// Tell who asked where the coordinator is.
    Introduce(Seeker),
    /// Pass packets on.
    Grant(Grant),
    /// Pass nothing on any more for this plan.
    Revoke(PlanEpoch),
}

impl Errand {
    /// Does it, for the coordinator at the other end of this connection.
    pub(super) fn run(&self, endpoint: &Endpoint, coordinator: &Connection) {
        let address = coordinator.remote_address();
        match self {
            // Others do not reach it by the way that was found for this worker alone.
            Self::Introduce(_) | Self::Grant(_) if coordinator.is_relayed() => {
                tracing::warn!("no rendezvous: the coordinator is itself reached by another one");
            }
            Self::Introduce(seeker) => endpoint.introduce(seeker, address),
            Self::Grant(grant) => endpoint.grant(grant.at_rendezvous(address.ip())),
            Self::Revoke(epoch) => endpoint.revoke(*epoch),
        }
    }
}

/// Who asks for the coordinator; `None` where the ticket names no rendezvous, of which this worker could be one.
pub(super) fn seekers(endpoint: &Endpoint, way_in: &WayIn) -> Option<Seekers> {
    let WayIn::Ticket(ticket) = way_in else { return None };
    (!ticket.rendezvous.is_empty()).then(|| endpoint.seekers(ticket.rendezvous_tag()))
}

/// The next of them. Cancel-safe.
pub(super) async fn next_seeker(seekers: &mut Option<Seekers>) -> Seeker {
    match seekers {
        Some(seekers) => seekers.next().await,
        None => pending().await,
    }
}

/// Waits until the coordinator calls here; for ever where the ticket names no rendezvous.
pub(super) async fn called(endpoint: &Endpoint, way_in: &WayIn) {
    match way_in {
        WayIn::Ticket(ticket) if !ticket.rendezvous.is_empty() => {
            let _address = endpoint.calls(ticket.rendezvous_tag()).next().await;
        }
        WayIn::Ticket(_) | WayIn::Key { .. } => pending().await,
    }
}
