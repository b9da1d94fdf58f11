//! Where a coordinator is: machines of one network find it by its key, without an address that anybody typed.
//!
//! A coordinator that other machines can reach says so by multicast DNS (RFC 6762 and 6763): a service of the type
//! `_qmesh._udp`, under a name that is made of its key, with its port. A worker that has the coordinator's key (a ticket
//! holds it) and finds it at no address that it knows asks the network. Whoever answers still has to prove the key: a false
//! answer costs a connection that fails.
//!
//! In other networks a coordinator is found by its record on the DHT of BitTorrent, if it was asked to put one there ([`Dht`], [`DhtRecord`]).
//!
//! Who holds a shared model says so in the same way, by a mark that only those can make who have its link.
//!
//! ```no_run
//! # async fn example(coordinator: qmesh_net::PeerId) -> Result<(), qmesh_discovery::LanError> {
//! use std::time::Duration;
//!
//! let _said = qmesh_discovery::Announcement::begin(
//!     coordinator,
//!     ([0, 0, 0, 0], 4433).into(),
//!     "smollm2-135m",
//!     qmesh_discovery::Entrance::ByTicket,
//! )?;
//! let addresses = qmesh_discovery::find(coordinator, Duration::from_secs(2)).await?;
//! assert!(!addresses.is_empty());
//! # Ok(())
//! # }
//! ```

mod addresses;
mod dht;
mod interfaces;
mod names;
mod port_map;

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, SocketAddrV6},
    time::Duration,
};

use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use qmesh_net::PeerId;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use addresses::{ADDRESSES, preference};
pub use addresses::{is_of_a_private_network, listen_for, own_addresses, told_addresses};
pub use dht::{Bootstrap, Dht, DhtError, DhtRecord, DhtSeeker, Kept};
pub use interfaces::Interfaces;
pub use names::{is_dialable, is_host_name};
pub use port_map::{PortMap, PortMapError, Renewed};

/// Why the network cannot be asked, or told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LanError {
    /// Multicast DNS does not work here.
    #[error("multicast DNS: {0}")]
    Mdns(#[from] mdns_sd::Error),
}

/// Who may come to a coordinator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entrance {
    /// Whoever has a ticket.
    ByTicket,
    /// Others may ask.
    Open,
}

/// A coordinator that says on the network where it is, for as long as this lives.
pub struct Announcement {
    daemon: ServiceDaemon,
}

/// A coordinator that was found on the network. What it says of itself is not to be trusted before it has proved its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FoundCoordinator {
    /// What tells its key from others: see [`mark_of`].
    pub mark: String,
    /// The model that it serves.
    pub model: String,
    /// Its key, where workers without a ticket may ask it to let them in.
    pub open: Option<PeerId>,
    /// Where it can be dialled, as `host:port`, addresses of the local network first.
    pub addresses: Vec<String>,
}

impl Announcement {
    /// Says that the coordinator with this key, which serves `model` and is so open, listens at `listen`. An unspecified address stands for
    /// all of this machine's, also those that it gets later.
    ///
    /// # Errors
    /// The sockets of multicast DNS cannot be opened.
    pub fn begin(coordinator: PeerId, listen: SocketAddr, model: &str, entrance: Entrance) -> Result<Self, LanError> {
        let (mark, key) = (mark_of(coordinator), coordinator.to_string());
        let mut said = vec![(MARK, mark.as_str()), (MODEL, short(model))];
        if entrance == Entrance::Open {
            // Who has no ticket knows the key from nowhere else.
            said.push((OPEN, key.as_str()));
        }
        Self::of(COORDINATORS, &mark, listen, &said)
    }

    /// Says that `holder` listens at `listen` for readers of the shared model with this mark.
    ///
    /// # Errors
    /// As [`Announcement::begin`].
    pub fn of_holder(mark: &str, holder: PeerId, listen: SocketAddr) -> Result<Self, LanError> {
        let id = holder.to_string();
        Self::of(HOLDERS, &holder.short(), listen, &[(MARK, mark), (HOLDER, id.as_str())])
    }

    fn of(kind: &str, instance: &str, listen: SocketAddr, said: &[(&str, &str)]) -> Result<Self, LanError> {
        let host = format!("{instance}.local.");
        let daemon = ServiceDaemon::new()?;
        let service = if listen.ip().is_unspecified() {
            ServiceInfo::new(kind, instance, &host, "", listen.port(), said)?.enable_addr_auto()
        } else {
            ServiceInfo::new(kind, instance, &host, listen.ip(), listen.port(), said)?
        };
        daemon.register(service)?;
        Ok(Self { daemon })
    }
}

impl fmt::Debug for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Announcement")
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        // It says goodbye to the network on its own thread; a process that ends before is forgotten when its record expires.
        drop(self.daemon.shutdown());
    }
}

/// Where the coordinator with this key is on the local network, as `host:port`; nothing if it has not answered in time.
///
/// # Errors
/// The sockets of multicast DNS cannot be opened.
pub async fn find(coordinator: PeerId, patience: Duration) -> Result<Vec<String>, LanError> {
    let mark = mark_of(coordinator);
    let found = browse(COORDINATORS, patience, understood, |found| found.mark == mark).await?;
    Ok(found.into_iter().find(|found| found.mark == mark).map(|found| found.addresses).unwrap_or_default())
}

/// All coordinators that answer on the local network in this time, by their marks.
///
/// # Errors
/// The sockets of multicast DNS cannot be opened.
pub async fn discover(patience: Duration) -> Result<Vec<FoundCoordinator>, LanError> {
    let found = browse(COORDINATORS, patience, understood, |_| false).await?;
    let by_mark: BTreeMap<_, _> = found.into_iter().map(|found| (found.mark.clone(), found)).collect();
    Ok(by_mark.into_values().collect())
}

/// Who says on the local network that it holds the shared model with this mark, and where, as `host:port`. What they have is
/// checked when it comes.
///
/// # Errors
/// The sockets of multicast DNS cannot be opened.
pub async fn find_holders(mark: &str, patience: Duration) -> Result<Vec<(PeerId, Vec<String>)>, LanError> {
    let holder = |service: &ResolvedService| {
        let text = |name| service.txt_properties.get_property_val_str(name).unwrap_or_default();
        (text(MARK) == mark).then(|| Some((text(HOLDER).parse().ok()?, addresses_of(service)))).flatten()
    };
    browse(HOLDERS, patience, holder, |_| false).await
}

/// What tells a coordinator's key from others: 16 hexadecimal digits of its BLAKE3. The network does not hear the key itself, unless
/// the coordinator is open to whoever asks.
pub fn mark_of(coordinator: PeerId) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("qmesh lan 1");
    hasher.update(&coordinator.0);
    data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..8])
}

/// What is `understood` of the answers, until the time is over or one is `enough`.
async fn browse<T>(
    kind: &str,
    patience: Duration,
    understood: impl Fn(&ResolvedService) -> Option<T>,
    enough: impl Fn(&T) -> bool,
) -> Result<Vec<T>, LanError> {
    let until = Instant::now() + patience;
    let daemon = ServiceDaemon::new()?;
    let answers = daemon.browse(kind)?;
    let mut all = Vec::new();
    while let Ok(Ok(event)) = timeout_at(until, answers.recv_async()).await {
        if let ServiceEvent::ServiceResolved(service) = event
            && let Some(found) = understood(&service)
        {
            let done = enough(&found);
            all.push(found);
            if done {
                break;
            }
        }
    }
    drop(daemon.shutdown());
    Ok(all)
}

/// What a service says, if it is one of ours.
fn understood(service: &ResolvedService) -> Option<FoundCoordinator> {
    let text = |name| service.txt_properties.get_property_val_str(name).unwrap_or_default();
    let mark = text(MARK);
    let is_mark = mark.len() == MARK_DIGITS && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    let key = text(OPEN).parse().ok().filter(|&key| mark_of(key) == mark);
    is_mark.then(|| FoundCoordinator {
        mark: mark.to_owned(),
        open: key,
        // Names of others are shown in terminals.
        model: text(MODEL).chars().filter(|c| !c.is_control()).take(MODEL_CHARS).collect(),
        addresses: addresses_of(service),
    })
}

/// Where it can be dialled, best first.
fn addresses_of(service: &ResolvedService) -> Vec<String> {
    let mut addresses: Vec<SocketAddr> = service.addresses.iter().map(|ip| dialled(ip, service.port)).collect();
    addresses.sort_by_key(|address| (preference(address.ip()), *address));
    addresses.truncate(ADDRESSES);
    addresses.iter().map(SocketAddr::to_string).collect()
}

/// An address that can be dialled: one of a link needs the interface that it was heard on.
fn dialled(ip: &ScopedIp, port: u16) -> SocketAddr {
    if let ScopedIp::V6(scoped) = ip
        && scoped.addr().is_unicast_link_local()
    {
        return SocketAddrV6::new(*scoped.addr(), port, 0, scoped.scope_id().index).into();
    }
    SocketAddr::new(ip.to_ip_addr(), port)
}

/// As much of a name as a record has room for.
fn short(name: &str) -> &str {
    let end = (0..=name.len().min(MODEL_CHARS)).rev().find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

const COORDINATORS: &str = "_qmesh._udp.local.";
const HOLDERS: &str = "_qmesh-share._udp.local.";
/// Names of what a service says.
const MARK: &str = "key";
const MODEL: &str = "model";
const OPEN: &str = "open";
const HOLDER: &str = "holder";
const MARK_DIGITS: usize = 16;
const MODEL_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_keys_apart_and_gives_none_away() {
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
        assert_eq!((mark_of(one).len(), mark_of(one)), (MARK_DIGITS, mark_of(one)));
        assert_ne!(mark_of(one), mark_of(other));
        assert!(!mark_of(one).contains("0101"));
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(short("smollm2"), "smollm2");
        let long = "ü".repeat(40);
        assert_eq!(short(&long).len(), 64);
    }
}
