//! What counts as one address, where strangers are counted.

use std::net::{IpAddr, Ipv6Addr};

/// One address of IPv4, or a whole /64 network of IPv6, since a machine can use all that is in it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Origin(IpAddr);

impl Origin {
    /// Where packets from this address come from.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => Self(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into()),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => Self(ip),
        }
    }

    pub(crate) fn is_loopback(self) -> bool {
        self.0.is_loopback()
    }
}
