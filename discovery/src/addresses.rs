//! Where a socket is for other machines, and where to listen for a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

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

/// What to tell others of a socket that is bound to `bound`: an unspecified address is replaced by the one that leads out of this
/// machine, and by loopback for those on it.
pub fn told_addresses(bound: SocketAddr) -> Vec<String> {
    if !bound.ip().is_unspecified() {
        return vec![bound.to_string()];
    }
    let loopback: IpAddr = if bound.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let ips = outward_address(bound).into_iter().chain([loopback]);
    ips.map(|ip| SocketAddr::new(ip, bound.port()).to_string()).collect()
}

/// Where to listen for who is dialled at these addresses, on any port. Loopback stays on loopback: nothing of a mesh on one machine
/// is reachable from outside.
pub fn listen_for(addresses: &[String]) -> SocketAddr {
    let localhost = |address: &str| address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost");
    let every = |test: fn(&SocketAddr) -> bool, named: bool| {
        let passes = |address: &String| address.parse().map_or(named && localhost(address), |parsed| test(&parsed));
        !addresses.is_empty() && addresses.iter().all(passes)
    };
    let ip: IpAddr = match (every(SocketAddr::is_ipv6, false), every(|address| address.ip().is_loopback(), true)) {
        (false, false) => Ipv4Addr::UNSPECIFIED.into(),
        (false, true) => Ipv4Addr::LOCALHOST.into(),
        (true, false) => Ipv6Addr::UNSPECIFIED.into(),
        (true, true) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, 0)
}

/// The address that packets to the world leave from; connecting a UDP socket sends nothing.
pub(crate) fn outward_address(bound: SocketAddr) -> Option<IpAddr> {
    let (from, to) = if bound.is_ipv4() { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(to).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

/// The less the better: IPv4, then IPv6, then addresses of one link alone.
pub(crate) fn preference(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) if ip.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(ip) if ip.is_unicast_link_local() => 3,
        IpAddr::V6(_) => 1,
    }
}

/// Of one machine that are tried.
pub(crate) const ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn one_listens_where_the_other_is() {
        for (addresses, expected) in [
            (vec![], "0.0.0.0:0"),
            (vec!["127.0.0.1:1", "localhost:1"], "127.0.0.1:0"),
            (vec!["127.0.0.1:1", "192.168.1.2:1"], "0.0.0.0:0"),
            (vec!["mesh.example:1", "[fd00::1]:1"], "0.0.0.0:0"),
            (vec!["[fd00::1]:1", "[::1]:1"], "[::]:0"),
            (vec!["[::1]:1"], "[::1]:0"),
        ] {
            let listen = listen_for(&addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(listen.to_string(), expected, "{addresses:?}");
        }
        assert_eq!(told_addresses("192.168.7.1:5".parse().unwrap()), ["192.168.7.1:5"]);
        assert_eq!(told_addresses("0.0.0.0:5".parse().unwrap()).last().unwrap(), "127.0.0.1:5");
    }
}
