//! What a coordinator and a rendezvous say to each other: who seeks the coordinator, and whose packets the rendezvous may pass on.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    aside::RelayTag,
    codec::{Decode, Encode},
    ids::{PeerId, PlanEpoch},
    limits::{GRANT_BYTES_PER_SECOND, GRANT_IDLE, TICKET_ADDRESSES},
    relay::{RelayEnd, RelayGrant},
};

/// Somebody who has the mesh's ticket and asks a rendezvous where the coordinator is. The rendezvous tells the coordinator, which
/// opens the way and has it told back.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Seeker {
    /// The key that it names; whether it has it shows when it connects.
    pub peer: PeerId,
    /// What its packets carry if the rendezvous passes them on, and what the answer to it carries.
    pub tag: RelayTag,
    /// Where its packets come from, as `IP:port`.
    pub address: String,
}

/// The right of two peers to have their packets passed on by a rendezvous. It comes from the coordinator, on its own connection,
/// and so needs no signature.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Grant {
    /// The plan that they need it for; 0 where it is no plan, but the way of one of them to the coordinator.
    pub epoch: PlanEpoch,
    /// The two.
    pub ends: [GrantEnd; 2],
    /// Bytes that may pass in a second, both ways together.
    pub bytes_per_second: u64,
    /// It ends when nothing has passed for so many seconds.
    pub idle_seconds: u32,
}

/// One of the two.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct GrantEnd {
    /// Its key.
    pub peer: PeerId,
    /// What it sends, and is sent.
    pub tag: RelayTag,
    /// The IP addresses that it may be at; none for the coordinator, whose address the rendezvous sees.
    pub hosts: Vec<String>,
}

impl Seeker {
    /// Where its packets come from; `None` where that is no address.
    pub fn socket(&self) -> Option<SocketAddr> {
        self.address.parse().ok()
    }
}

impl Grant {
    /// What a rendezvous is told of a grant; an end without hosts is the coordinator.
    pub fn of(grant: &RelayGrant) -> Self {
        let end = |end: &RelayEnd| GrantEnd {
            peer: end.peer,
            tag: end.tag,
            hosts: end.hosts.iter().map(ToString::to_string).collect(),
        };
        Self {
            epoch: grant.epoch,
            ends: grant.ends.each_ref().map(end),
            bytes_per_second: grant.bytes_per_second,
            idle_seconds: u32::try_from(grant.idle.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// What a rendezvous makes of it, which sees the coordinator at this address, and passes on no more than it would itself.
    pub fn at_rendezvous(&self, coordinator: IpAddr) -> RelayGrant {
        let end = |end: &GrantEnd| {
            let named = end.hosts.iter().take(TICKET_ADDRESSES).filter_map(|host| host.parse().ok());
            let hosts = if end.hosts.is_empty() { vec![coordinator] } else { named.collect() };
            RelayEnd { peer: end.peer, tag: end.tag, hosts }
        };
        RelayGrant {
            ends: self.ends.each_ref().map(end),
            epoch: self.epoch,
            bytes_per_second: self.bytes_per_second.min(GRANT_BYTES_PER_SECOND),
            idle: Duration::from_secs(self.idle_seconds.into()).min(GRANT_IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_says_where_its_ends_are_and_has_bounds() {
        let at = |host: &str| host.parse::<IpAddr>().unwrap();
        let end = |byte, hosts| RelayEnd { peer: PeerId([byte; 32]), tag: RelayTag([byte; 16]), hosts };
        let grant = RelayGrant {
            ends: [end(1, vec![at("198.51.100.1")]), end(2, vec![])],
            epoch: PlanEpoch(3),
            bytes_per_second: u64::MAX,
            idle: Duration::from_secs(1 << 40),
        };
        let expected = RelayGrant {
            ends: [end(1, vec![at("198.51.100.1")]), end(2, vec![at("203.0.113.9")])],
            epoch: PlanEpoch(3),
            bytes_per_second: GRANT_BYTES_PER_SECOND,
            idle: GRANT_IDLE,
        };
        assert_eq!(Grant::of(&grant).at_rendezvous(at("203.0.113.9")), expected);
    }
}
