//! How workers find each other: where each can dial the other, and what lets the coordinator, or a rendezvous, pass their packets on
//! where no way leads from one to the other.

use std::net::{IpAddr, SocketAddr};

use qmesh_discovery::is_of_a_private_network;
use qmesh_net::{
    PeerWay, PlanEpoch, RelayEnd, RelayGrant, RelaySecret, RelayWay,
    limits::{GRANT_BYTES_PER_SECOND, GRANT_IDLE},
};

use super::worker::{Joined, WorkerId};
use crate::mesh::config::Relaying;

/// Who may pass packets on, where they do not go straight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relays<'a> {
    pub(super) relaying: &'a Relaying,
    /// The worker by which others come to this coordinator, if nobody reaches it otherwise.
    pub(super) rendezvous: Option<(WorkerId, &'a Joined)>,
}

/// What lets packets of a link pass.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Granted {
    pub(super) grant: RelayGrant,
    /// Whom it is for; this coordinator where `None`.
    pub(super) by: Option<WorkerId>,
}

/// Which end of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    /// The stage that dials.
    Before,
    /// The stage that is dialled.
    After,
}

/// Where `from` can dial `to`, best first: inside one network, as that network knows it; otherwise as the coordinator does.
pub(super) fn addresses(from: &Joined, to: &Joined) -> Vec<String> {
    let (here, there) = (from.address.ip().to_canonical(), to.address.ip().to_canonical());
    // Others reach no worker at the loopback address that a coordinator on its machine sees it at.
    let seen = Some(to.address).filter(|_| !there.is_loopback() || here.is_loopback());
    // A worker could name anybody's address: those of networks that are not its own are not passed on.
    let own = to.own.iter().copied().filter(|own| is_of_a_private_network(own.ip()) || own.ip() == there);
    let mut all: Vec<SocketAddr> = if here == there && !here.is_loopback() {
        own.chain(seen).collect()
    } else {
        seen.into_iter().chain(own).collect()
    };
    let mut listed: Vec<SocketAddr> = Vec::new();
    all.retain(|address| {
        let is_new = !listed.contains(address);
        listed.push(*address);
        is_new
    });
    all.iter().map(ToString::to_string).collect()
}

/// The way from the worker at one side of the link behind `stage` to the other.
pub(super) fn way(
    relays: Relays<'_>,
    (epoch, stage): (PlanEpoch, usize),
    side: Side,
    from: &Joined,
    to: &Joined,
) -> PeerWay {
    let relay = relays.between(from, to).map(|(secret, rendezvous)| {
        let [before, after] = secret.tags(epoch, stage as u64);
        let tag = if side == Side::Before { before } else { after };
        RelayWay { tag, addresses: rendezvous.iter().map(|(_, joined)| joined.address.to_string()).collect() }
    });
    PeerWay { peer: to.peer, addresses: addresses(from, to), relay }
}

/// What lets packets of the link behind `stage` pass.
pub(super) fn grant(
    relays: Relays<'_>,
    (epoch, stage): (PlanEpoch, usize),
    before: &Joined,
    after: &Joined,
) -> Option<Granted> {
    let (secret, rendezvous) = relays.between(before, after)?;
    let tags = secret.tags(epoch, stage as u64);
    // A rendezvous sees workers of the coordinator's own network where it sees the coordinator, whose address it fills in.
    let is_near = |ip: IpAddr| ip.to_canonical().is_loopback() || is_of_a_private_network(ip);
    let hosts = |ip: IpAddr| if rendezvous.is_some() && is_near(ip) { Vec::new() } else { vec![ip] };
    let end = |joined: &Joined, tag| RelayEnd { peer: joined.peer, tag, hosts: hosts(joined.address.ip()) };
    let ends = [end(before, tags[0]), end(after, tags[1])];
    let grant = RelayGrant { ends, epoch, bytes_per_second: GRANT_BYTES_PER_SECOND, idle: GRANT_IDLE };
    Some(Granted { grant, by: rendezvous.map(|(worker, _)| worker) })
}

impl<'a> Relays<'a> {
    /// What makes the tags of packets between two workers, and the rendezvous that passes them on, if it is not the coordinator;
    /// `None` where nobody does.
    fn between(self, one: &Joined, other: &Joined) -> Option<(&'a RelaySecret, Option<(WorkerId, &'a Joined)>)> {
        let Relaying::On(secret) = self.relaying else { return None };
        let is_end = |joined: &Joined| [one.peer, other.peer].contains(&joined.peer);
        match self.rendezvous {
            // Everybody reaches it, and it learns where those are whose NAT has another port for every destination.
            Some((_, joined)) if is_end(joined) => None,
            rendezvous => Some((secret, rendezvous)),
        }
    }
}

#[cfg(test)]
mod tests {
    use qmesh_net::{PeerId, RelaySecret};

    use super::*;

    fn worker(address: &str, own: &[&str]) -> Joined {
        let plain = Joined::new("w".to_owned(), PeerId([7; 32]), address.parse().unwrap(), 1, 1);
        Joined { own: own.iter().map(|own| own.parse().unwrap()).collect(), ..plain }
    }

    #[test]
    fn neighbours_of_one_network_meet_inside_it_and_others_outside() {
        let home = worker("198.51.100.1:5", &["192.168.0.2:5"]);
        let also = worker("198.51.100.1:6", &["192.168.0.3:6", "203.0.113.9:6"]);
        let away = worker("198.51.100.2:7", &["198.51.100.2:7"]);
        assert_eq!(addresses(&home, &also), ["192.168.0.3:6", "198.51.100.1:6"], "and nobody else's address");
        assert_eq!(addresses(&away, &also), ["198.51.100.1:6", "192.168.0.3:6"]);
        assert_eq!(addresses(&home, &away), ["198.51.100.2:7"], "once");
    }

    #[test]
    fn loopback_is_for_those_of_the_same_machine() {
        let here = worker("127.0.0.1:5", &["192.168.0.2:5"]);
        let also = worker("127.0.0.1:6", &["192.168.0.2:6"]);
        let away = worker("192.168.0.9:7", &[]);
        assert_eq!(addresses(&here, &also), ["127.0.0.1:6", "192.168.0.2:6"]);
        assert_eq!(addresses(&away, &here), ["192.168.0.2:5"]);
    }

    #[test]
    fn both_sides_of_a_link_have_the_tags_of_its_grant() {
        let (before, after) = (worker("198.51.100.1:5", &[]), worker("198.51.100.2:6", &[]));
        let (on, link) = (Relaying::On(RelaySecret::random()), (PlanEpoch(3), 1));
        let relays = |relaying| Relays { relaying, rendezvous: None };
        let Granted { grant: granted, by } = grant(relays(&on), link, &before, &after).unwrap();
        let tags = [(Side::Before, &before, &after), (Side::After, &after, &before)]
            .map(|(side, from, to)| way(relays(&on), link, side, from, to).relay.unwrap().tag);
        assert_eq!(by, None);
        assert_eq!(granted.ends.each_ref().map(|end| end.tag), tags);
        let of_another = grant(relays(&on), (PlanEpoch(4), 1), &before, &after).unwrap().grant;
        assert!(tags[0] != tags[1] && of_another.ends[0].tag != tags[0]);
        assert_eq!(granted.ends[1].hosts, [after.address.ip()]);
        assert!(grant(relays(&Relaying::Off), link, &before, &after).is_none());
        assert_eq!(way(relays(&Relaying::Off), link, Side::Before, &before, &after).relay, None);
    }

    #[test]
    fn where_nobody_reaches_the_coordinator_a_rendezvous_passes_packets_on_but_not_its_own() {
        let by_key = |byte, address: &str| Joined { peer: PeerId([byte; 32]), ..worker(address, &[]) };
        let (before, after) = (by_key(1, "198.51.100.1:5"), by_key(2, "198.51.100.2:6"));
        let (rendezvous, on, link) =
            (by_key(3, "203.0.113.9:7"), Relaying::On(RelaySecret::random()), (PlanEpoch(3), 1));
        let relays = Relays { relaying: &on, rendezvous: Some((WorkerId(9), &rendezvous)) };
        let told = way(relays, link, Side::Before, &before, &after).relay.unwrap();
        assert_eq!(told.addresses, ["203.0.113.9:7"]);
        let granted = grant(relays, link, &before, &after).unwrap();
        let hosts = granted.grant.ends.each_ref().map(|end| end.hosts.clone());
        assert_eq!(
            (granted.by, hosts),
            (Some(WorkerId(9)), [before.address.ip(), after.address.ip()].map(|ip| vec![ip]))
        );
        let beside = by_key(4, "127.0.0.1:8");
        assert!(
            grant(relays, link, &beside, &after).unwrap().grant.ends[0].hosts.is_empty(),
            "where the coordinator is"
        );
        assert_eq!(way(relays, link, Side::After, &rendezvous, &before).relay, None);
        assert!(grant(relays, link, &before, &rendezvous).is_none());
    }
}
