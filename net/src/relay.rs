//! Who passes packets on for whom, as a state machine: packets go in, and what is to become of them comes out.
//!
//! A relay has a grant for two ends, and passes on what the one sends to the other, as it is: these are packets of a QUIC
//! connection between the two, which it can neither read nor change. An end is known by its tag, and is where its last packet
//! came from, as long as it is one of the hosts that the grant names. To QUIC the far end has an address of its own, of a
//! range that no host has.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    aside::RelayTag,
    ids::{PeerId, PlanEpoch},
    keyfile,
};

/// Grants that a relay may have at a time; the one that nothing has passed by for longest goes first.
const GRANTS: usize = 1024;
/// What may pass at once after a pause, in time at the grant's rate.
const BURST: Duration = Duration::from_millis(250);
/// Of 240.0.0.0/4, which is reserved (RFC 1112) and which no system sends to.
const FAR_ENDS: u8 = 240;

/// The right of two peers to have their packets passed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RelayGrant {
    /// The two.
    pub ends: [RelayEnd; 2],
    /// The plan that they need it for.
    pub epoch: PlanEpoch,
    /// Bytes that may pass in a second, both ways together; what is more is lost.
    pub bytes_per_second: u64,
    /// It ends when nothing has passed for so long.
    pub idle: Duration,
}

/// What a coordinator makes tags of. Never sent.
#[derive(Clone)]
pub struct RelaySecret([u8; 32]);

/// One of the two.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RelayEnd {
    /// Its key.
    pub peer: PeerId,
    /// What it sends, and is sent.
    pub tag: RelayTag,
    /// The hosts that it may be at.
    pub hosts: Vec<IpAddr>,
}

/// What becomes of a packet that came with a tag.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Passing {
    /// It goes on, to this address and under this tag.
    On(SocketAddr, RelayTag),
    /// It is for this machine, and comes from the far end with this address.
    Here(SocketAddr),
    /// Nothing.
    Nowhere,
}

/// What is passed on here, and what comes here by others.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    grants: HashMap<u64, Granted>,
    passages: HashMap<RelayTag, (u64, usize)>,
    far: HashMap<RelayTag, FarEnd>,
    by_address: HashMap<SocketAddr, RelayTag>,
    next_grant: u64,
    next_far: u32,
    passed_bytes: u64,
}

#[derive(Debug)]
struct Granted {
    grant: RelayGrant,
    at: [Option<SocketAddr>; 2],
    /// When all that passed would have left at the rate.
    paid_until: Instant,
    last: Instant,
}

/// A peer that is reached by a relay.
#[derive(Clone, Copy, Debug)]
struct FarEnd {
    relay: SocketAddr,
    address: SocketAddr,
}

impl RelayEnd {
    /// Whether its packets may come from this host.
    fn is_of(&self, host: IpAddr) -> bool {
        self.hosts.iter().any(|ip| ip.to_canonical() == host.to_canonical())
    }
}

impl RelaySecret {
    /// A new one.
    pub fn random() -> Self {
        Self(keyfile::random())
    }

    /// The tags of the two ends of a plan's link.
    pub fn tags(&self, epoch: PlanEpoch, link: u64) -> [RelayTag; 2] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&epoch.0.to_le_bytes()).update(&link.to_le_bytes());
        let mut both = [RelayTag::default(); 2];
        let [one, other] = &mut both;
        let mut output = hasher.finalize_xof();
        output.fill(&mut one.0);
        output.fill(&mut other.0);
        both
    }
}

impl fmt::Debug for RelaySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelaySecret(…)")
    }
}

/// Whether an address stands for a far end.
pub(crate) fn is_far(address: SocketAddr) -> bool {
    matches!(address.ip().to_canonical(), IpAddr::V4(ip) if ip.octets()[0] == FAR_ENDS)
}

impl Relays {
    /// From now on packets of these two ends are passed on. A grant with the same tags takes the place of the one before.
    pub(crate) fn grant(&mut self, now: Instant, grant: RelayGrant) {
        self.forget(|granted| now.saturating_duration_since(granted.last) > granted.grant.idle);
        if self.grants.len() >= GRANTS
            && let Some(oldest) = self.grants.values().map(|granted| granted.last).min()
        {
            self.forget(|granted| granted.last == oldest);
        }
        let before = self.passages.get(&grant.ends[0].tag).and_then(|(number, _)| self.grants.remove(number));
        // An end stays where it was seen, unless it may not be there any more.
        let seen = before.map_or([None; 2], |before| before.at);
        let may_be_at = |side: usize, at: &SocketAddr| grant.ends[side].is_of(at.ip());
        let at = [0, 1].map(|side| seen[side].filter(|at| may_be_at(side, at)));
        let number = self.next_grant;
        self.next_grant += 1;
        for (side, end) in grant.ends.iter().enumerate() {
            self.passages.insert(end.tag, (number, side));
        }
        let paid_until = now.checked_sub(BURST).unwrap_or(now);
        self.grants.insert(number, Granted { grant, at, paid_until, last: now });
    }

    /// Grants of this plan end.
    pub(crate) fn revoke(&mut self, epoch: PlanEpoch) {
        self.forget(|granted| granted.grant.epoch == epoch);
    }

    /// Bytes that were passed on so far.
    pub(crate) fn passed_bytes(&self) -> u64 {
        self.passed_bytes
    }

    /// The address that the peer behind `relay` has from now on.
    pub(crate) fn reach(&mut self, relay: SocketAddr, tag: RelayTag) -> SocketAddr {
        let [_, a, b, c] = self.next_far.to_be_bytes();
        self.next_far += 1;
        let address = SocketAddr::from((Ipv4Addr::new(FAR_ENDS, a, b, c), 1));
        // A socket of both families knows the addresses of IPv4 by their IPv6 form.
        let address = match relay.ip() {
            IpAddr::V4(_) => address,
            IpAddr::V6(_) => (Ipv4Addr::new(FAR_ENDS, a, b, c).to_ipv6_mapped(), 1).into(),
        };
        self.far.insert(tag, FarEnd { relay, address });
        self.by_address.insert(address, tag);
        address
    }

    /// Nobody needs that any more.
    pub(crate) fn leave(&mut self, address: SocketAddr) {
        if let Some(tag) = self.by_address.remove(&address) {
            self.far.remove(&tag);
        }
    }

    /// Where packets to a far end go, and under which tag.
    pub(crate) fn way(&self, address: SocketAddr) -> Option<(SocketAddr, RelayTag)> {
        let tag = self.by_address.get(&address)?;
        Some((self.far.get(tag)?.relay, *tag))
    }

    /// A packet with a tag came.
    pub(crate) fn arrived(&mut self, now: Instant, from: SocketAddr, tag: RelayTag, payload_bytes: usize) -> Passing {
        if let Some(far) = self.far.get(&tag) {
            return if far.relay == from && payload_bytes > 0 { Passing::Here(far.address) } else { Passing::Nowhere };
        }
        let Some(&(number, side)) = self.passages.get(&tag) else { return Passing::Nowhere };
        let Some(granted) = self.grants.get_mut(&number) else { return Passing::Nowhere };
        if !granted.admits(now, side, from) {
            return Passing::Nowhere;
        }
        let other = 1 - side;
        let Some(to) = granted.at[other].filter(|_| payload_bytes > 0 && granted.pays(now, payload_bytes)) else {
            return Passing::Nowhere;
        };
        self.passed_bytes += payload_bytes as u64;
        Passing::On(to, granted.grant.ends[other].tag)
    }

    fn forget(&mut self, gone: impl Fn(&Granted) -> bool) {
        self.grants.retain(|_, granted| !gone(granted));
        let grants = &self.grants;
        self.passages.retain(|_, (number, _)| grants.contains_key(number));
    }
}

impl Granted {
    /// Whether the end may be there; if so, that is where it is.
    fn admits(&mut self, now: Instant, side: usize, from: SocketAddr) -> bool {
        let alive = now.saturating_duration_since(self.last) <= self.grant.idle;
        let admitted = alive && self.grant.ends[side].is_of(from.ip());
        if admitted {
            self.at[side] = Some(from);
            self.last = now;
        }
        admitted
    }

    /// Whether so many bytes are within the rate; if so, they have passed.
    fn pays(&mut self, now: Instant, bytes: usize) -> bool {
        let rate = self.grant.bytes_per_second.max(1);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid_until = self.paid_until.max(earliest) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        let within = paid_until <= now;
        if within {
            self.paid_until = paid_until;
        }
        within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RelayTag = RelayTag([1; 16]);
    const B: RelayTag = RelayTag([2; 16]);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn grant(bytes_per_second: u64) -> RelayGrant {
        let end =
            |byte, tag, host: &str| RelayEnd { peer: PeerId([byte; 32]), tag, hosts: vec![host.parse().unwrap()] };
        RelayGrant {
            ends: [end(1, A, "198.51.100.1"), end(2, B, "198.51.100.2")],
            epoch: PlanEpoch(3),
            bytes_per_second,
            idle: Duration::from_secs(60),
        }
    }

    #[test]
    fn packets_pass_between_the_two_ends_of_a_grant_and_no_others() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.grant(now, grant(1 << 30));
        let (a, b) = (at("198.51.100.1:7"), at("198.51.100.2:9"));
        assert_eq!(relays.arrived(now, a, A, 5), Passing::Nowhere, "where the other is, is not known yet");
        assert_eq!(relays.arrived(now, b, B, 0), Passing::Nowhere, "it only says where it is");
        assert_eq!(relays.arrived(now, a, A, 5), Passing::On(b, B));
        // Its NAT has given it another port.
        let moved = at("198.51.100.2:10");
        assert_eq!(relays.arrived(now, moved, B, 5), Passing::On(a, A));
        assert_eq!(relays.arrived(now, a, A, 5), Passing::On(moved, B));
        // Somebody else, even one who knows the tag, gets nothing and moves nobody.
        assert_eq!(relays.arrived(now, at("198.51.100.3:7"), A, 5), Passing::Nowhere);
        assert_eq!(relays.arrived(now, a, RelayTag([3; 16]), 5), Passing::Nowhere);
        assert_eq!((relays.arrived(now, moved, B, 5), relays.passed_bytes()), (Passing::On(a, A), 20));
        relays.revoke(PlanEpoch(3));
        assert_eq!(relays.arrived(now, a, A, 5), Passing::Nowhere);
    }

    #[test]
    fn an_end_that_has_moved_is_granted_anew_and_the_other_stays() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let (a, b, elsewhere) = (at("198.51.100.1:7"), at("198.51.100.2:9"), at("198.51.100.4:9"));
        relays.grant(now, grant(1 << 30));
        relays.arrived(now, a, A, 0);
        relays.arrived(now, b, B, 0);
        let mut anew = grant(1 << 30);
        anew.ends[1].hosts = vec![elsewhere.ip()];
        relays.grant(now, anew);
        assert_eq!(relays.arrived(now, a, A, 5), Passing::Nowhere, "it has not been seen there yet");
        assert_eq!(relays.arrived(now, b, B, 5), Passing::Nowhere);
        assert_eq!(relays.arrived(now, elsewhere, B, 5), Passing::On(a, A));
        assert_eq!(relays.arrived(now, a, A, 5), Passing::On(elsewhere, B));
        relays.revoke(PlanEpoch(3));
        assert_eq!((relays.grants.len(), relays.passages.len()), (0, 0));
    }

    #[test]
    fn a_grant_has_a_rate_and_ends_when_nothing_passes() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        relays.grant(start, grant(100_000));
        let (a, b) = (at("198.51.100.1:7"), at("198.51.100.2:9"));
        relays.arrived(start, b, B, 0);
        let now = start + Duration::from_secs(1);
        let passed = (0..100).filter(|_| relays.arrived(now, a, A, 1000) == Passing::On(b, B)).count();
        assert_eq!(passed, 25, "a quarter of a second's");
        let later = now + Duration::from_millis(100);
        let passed = (0..100).filter(|_| relays.arrived(later, a, A, 1000) == Passing::On(b, B)).count();
        assert_eq!(passed, 10, "what has become free since");
        assert_eq!(relays.arrived(later + Duration::from_secs(61), a, A, 1000), Passing::Nowhere);
    }

    #[test]
    fn what_comes_by_a_relay_is_from_the_far_end_and_from_that_relay_only() {
        let (mut relays, now, relay) = (Relays::default(), Instant::now(), at("192.0.2.1:4433"));
        let (one, other) = (relays.reach(relay, A), relays.reach(relay, B));
        assert!(one != other && is_far(one) && !is_far(relay));
        assert_eq!((relays.way(one), relays.way(relay)), (Some((relay, A)), None));
        assert_eq!(relays.arrived(now, relay, A, 5), Passing::Here(one));
        assert_eq!(relays.arrived(now, at("192.0.2.1:4434"), A, 5), Passing::Nowhere);
        relays.leave(one);
        assert_eq!((relays.arrived(now, relay, A, 5), relays.way(one)), (Passing::Nowhere, None));
        let mapped = relays.reach(at("[::ffff:192.0.2.1]:4433"), A);
        assert!(mapped.is_ipv6() && is_far(mapped));
    }

    #[test]
    fn there_are_only_so_many_grants() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        for number in 0..=GRANTS as u64 {
            let mut grant = grant(1);
            let tag = |side: u8| RelayTag([&[side; 8][..], &number.to_le_bytes()].concat().try_into().unwrap());
            (grant.ends[0].tag, grant.ends[1].tag) = (tag(0), tag(1));
            relays.grant(start + Duration::from_micros(number), grant);
        }
        assert_eq!((relays.grants.len(), relays.passages.len()), (GRANTS, 2 * GRANTS));
    }
}
