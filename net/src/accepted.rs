//! Connections that others made to this machine. Each stays at the address where it found it, so that it ends with that address.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    close::CloseCode,
    connection::{Connection, WeakConnection},
};

/// Those that may still be there. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct AcceptedConnections(Arc<Mutex<Vec<WeakConnection>>>);

impl AcceptedConnections {
    pub(crate) fn remember(&self, connection: &Connection) {
        let mut accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.retain(WeakConnection::is_here);
        accepted.push(connection.downgrade());
    }

    /// Closes those that found this machine at none of `addresses`, its addresses now, and returns them.
    pub(crate) fn close_elsewhere(&self, addresses: &BTreeSet<IpAddr>) -> Vec<Connection> {
        let accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = Vec::new();
        for connection in accepted.iter().filter_map(WeakConnection::upgrade) {
            if let Some(ip) = connection.local_ip().filter(|ip| !addresses.contains(ip)) {
                connection.close(CloseCode::Ok, &format!("this machine is not at {ip} any more"));
                left.push(connection);
            }
        }
        left
    }
}
