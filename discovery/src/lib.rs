//! Where a coordinator is: machines of one network find it by its key, without an address that anybody typed.
//!
//! A coordinator that other machines can reach says so by multicast DNS (RFC 6762 and 6763): a service of the type
//! `_qmesh._udp`, under a name that is made of its key, with its port. A worker that has the coordinator's key (a ticket
//! holds it) and finds it at no address that it knows asks the network. Whoever answers still has to prove the key: a false
//! answer costs a connection that fails.
//!
//! ```no_run
//! # async fn example(coordinator: qmesh_net::PeerId) -> Result<(), qmesh_discovery::LanError> {
//! use std::time::Duration;
//!
//! let _said = qmesh_discovery::Announcement::begin(coordinator, ([0, 0, 0, 0], 4433).into(), "smollm2-135m")?;
//! let addresses = qmesh_discovery::find(coordinator, Duration::from_secs(2)).await?;
//! assert!(!addresses.is_empty());
//! # Ok(())
//! # }
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};
use qmesh_net::PeerId;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

/// Why the network cannot be asked, or told.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LanError {
    /// Multicast DNS does not work here.
    #[error("multicast DNS: {0}")]
    Mdns(#[from] mdns_sd::Error),
}

/// A coordinator that says on the network where it is, for as long as this lives.
pub struct Announcement {
    daemon: ServiceDaemon,
}

/// A coordinator that was found on the network. What it says of itself is not to be trusted before it has proved its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// What tells its key from others: see [`mark_of`].
    pub mark: String,
    /// The model that it serves.
    pub model: String,
    /// Where it can be dialled, as `host:port`, addresses of the local network first.
    pub addresses: Vec<String>,
}

impl Announcement {
    /// Says that the coordinator with this key, which serves `model`, listens at `listen`. An unspecified address stands for
    /// all of this machine's, also those that it gets later.
    ///
    /// # Errors
    /// The sockets of multicast DNS cannot be opened.
    pub fn begin(coordinator: PeerId, listen: SocketAddr, model: &str) -> Result<Self, LanError> {
        let mark = mark_of(coordinator);
        let said = [(MARK, mark.as_str()), (MODEL, short(model))];
        let host = format!("{mark}.local.");
        let daemon = ServiceDaemon::new()?;
        let service = if listen.ip().is_unspecified() {
            ServiceInfo::new(SERVICE, &mark, &host, "", listen.port(), &said[..])?.enable_addr_auto()
        } else {
            ServiceInfo::new(SERVICE, &mark, &host, listen.ip(), listen.port(), &said[..])?
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
    let found = browse(patience, |found| found.mark == mark).await?;
    Ok(found.into_values().find(|found| found.mark == mark).map(|found| found.addresses).unwrap_or_default())
}

/// All coordinators that answer on the local network in this time, by their marks.
///
/// # Errors
/// The sockets of multicast DNS cannot be opened.
pub async fn discover(patience: Duration) -> Result<Vec<Found>, LanError> {
    Ok(browse(patience, |_| false).await?.into_values().collect())
}

/// Where a socket that is bound to `listen` is for other machines, as `IP:port`: an unspecified address stands for those that this
/// machine's networks know it by. Of addresses that the internet knows there are none: others see these anyway.
pub fn own_addresses(listen: SocketAddr) -> Vec<String> {
    if !listen.ip().is_unspecified() {
        return if listen.ip().is_loopback() { Vec::new() } else { vec![listen.to_string()] };
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let of_family = |ip: &IpAddr| listen.is_ipv6() || ip.is_ipv4();
    let mut own: Vec<IpAddr> = interfaces.iter().map(if_addrs::Interface::ip).filter(of_family).collect();
    own.retain(|ip| is_of_a_private_network(*ip));
    own.sort_by_key(|ip| (preference(*ip), *ip));
    own.truncate(ADDRESSES);
    own.into_iter().map(|ip| SocketAddr::new(ip, listen.port()).to_string()).collect()
}

/// Whether an address means something only inside a network: a private one, a provider's behind its NAT, or an overlay's.
pub fn is_of_a_private_network(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// What tells a coordinator's key from others: 16 hexadecimal digits of its BLAKE3. The network does not hear the key itself.
pub fn mark_of(coordinator: PeerId) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("qmesh lan 1");
    hasher.update(&coordinator.0);
    data_encoding::HEXLOWER.encode(&hasher.finalize().as_bytes()[..8])
}

/// Who answers, until the time is over or somebody is `enough`.
async fn browse(patience: Duration, enough: impl Fn(&Found) -> bool) -> Result<BTreeMap<String, Found>, LanError> {
    let until = Instant::now() + patience;
    let daemon = ServiceDaemon::new()?;
    let answers = daemon.browse(SERVICE)?;
    let mut all = BTreeMap::new();
    while let Ok(Ok(event)) = timeout_at(until, answers.recv_async()).await {
        if let ServiceEvent::ServiceResolved(service) = event
            && let Some(found) = understood(&service)
        {
            let done = enough(&found);
            all.insert(found.mark.clone(), found);
            if done {
                break;
            }
        }
    }
    drop(daemon.shutdown());
    Ok(all)
}

/// What a service says, if it is one of ours.
fn understood(service: &ResolvedService) -> Option<Found> {
    let text = |name| service.txt_properties.get_property_val_str(name).unwrap_or_default();
    let mark = text(MARK);
    let is_mark = mark.len() == MARK_DIGITS && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut addresses: Vec<SocketAddr> = service.addresses.iter().map(|ip| dialled(ip, service.port)).collect();
    addresses.sort_by_key(|address| (preference(address.ip()), *address));
    addresses.truncate(ADDRESSES);
    is_mark.then(|| Found {
        mark: mark.to_owned(),
        // Names of others are shown in terminals.
        model: text(MODEL).chars().filter(|c| !c.is_control()).take(MODEL_CHARS).collect(),
        addresses: addresses.iter().map(SocketAddr::to_string).collect(),
    })
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

/// The less the better: IPv4, then IPv6, then addresses of one link alone.
fn preference(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => 3,
        IpAddr::V6(_) => 1,
    }
}

/// As much of a name as a record has room for.
fn short(name: &str) -> &str {
    let end = (0..=name.len().min(MODEL_CHARS)).rev().find(|&end| name.is_char_boundary(end));
    &name[..end.unwrap_or(0)]
}

const SERVICE: &str = "_qmesh._udp.local.";
/// Names of what a service says.
const MARK: &str = "key";
const MODEL: &str = "model";
const MARK_DIGITS: usize = 16;
const MODEL_CHARS: usize = 64;
/// Of one coordinator that are tried.
const ADDRESSES: usize = 8;

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

    #[test]
    fn a_socket_is_where_it_listens() {
        assert_eq!(own_addresses("192.168.7.1:5".parse().unwrap()), ["192.168.7.1:5"]);
        assert!(own_addresses("127.0.0.1:5".parse().unwrap()).is_empty());
        let anywhere = own_addresses("0.0.0.0:5".parse().unwrap());
        assert!(anywhere.iter().all(|address| address.ends_with(":5") && !address.starts_with("127.")), "{anywhere:?}");
        let private = ["10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"];
        assert!(private.iter().all(|ip| is_of_a_private_network(ip.parse().unwrap())));
        let others = ["127.0.0.1", "169.254.1.1", "1.1.1.1", "100.128.0.1", "2001:db8::1", "fe80::1"];
        assert!(others.iter().all(|ip| !is_of_a_private_network(ip.parse().unwrap())));
    }

    #[test]
    fn addresses_of_the_network_come_before_those_of_a_link() {
        let place = |ip: &str| preference(ip.parse().unwrap());
        assert!(place("192.168.0.2") < place("fd00::2") && place("fd00::2") < place("169.254.1.1"));
        assert!(place("169.254.1.1") < place("fe80::1"));
    }
}
