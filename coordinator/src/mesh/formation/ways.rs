//! How workers find each other: where each can dial the other, and what lets the coordinator pass their packets on where no
//! way leads from one to the other.

use std::{net::SocketAddr, time::Duration};

use qmesh_discovery::is_of_a_private_network;
use qmesh_net::{PeerWay, PlanEpoch, RelayEnd, RelayGrant, RelayWay};

use super::worker::Joined;
use crate::mesh::config::Relaying;

/// Bytes a second that the coordinator passes on for one link: 100 Mbit/s.
pub(super) const RELAY_BYTES_PER_SECOND: u64 = 12_500_000;
/// A link says something every second, so after such a silence nobody needs the grant.
const RELAY_IDLE: Duration = Duration::from_secs(60);

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
    relaying: &Relaying,
    (epoch, stage): (PlanEpoch, usize),
    side: Side,
    from: &Joined,
    to: &Joined,
) -> PeerWay {
    let relay = match relaying {
        Relaying::Off => None,
        Relaying::On(secret) => {
            let [before, after] = secret.tags(epoch, stage as u64);
            let tag = if side == Side::Before { before } else { after };
            Some(RelayWay { tag, addresses: Vec::new() })
        }
    };
    PeerWay { peer: to.peer, addresses: addresses(from, to), relay }
}

/// What lets packets of the link behind `stage` pass here.
pub(super) fn grant(
    relaying: &Relaying,
    (epoch, stage): (PlanEpoch, usize),
    before: &Joined,
    after: &Joined,
) -> Option<RelayGrant> {
    let Relaying::On(secret) = relaying else { return None };
    let tags = secret.tags(epoch, stage as u64);
    let end = |joined: &Joined, tag| RelayEnd { peer: joined.peer, tag, hosts: vec![joined.address.ip()] };
    let ends = [end(before, tags[0]), end(after, tags[1])];
    Some(RelayGrant { ends, epoch, bytes_per_second: RELAY_BYTES_PER_SECOND, idle: RELAY_IDLE })
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
        let granted = grant(&on, link, &before, &after).unwrap();
        let tags = [(Side::Before, &before, &after), (Side::After, &after, &before)]
            .map(|(side, from, to)| way(&on, link, side, from, to).relay.unwrap().tag);
        assert_eq!(granted.ends.each_ref().map(|end| end.tag), tags);
        assert!(tags[0] != tags[1] && grant(&on, (PlanEpoch(4), 1), &before, &after).unwrap().ends[0].tag != tags[0]);
        assert_eq!(granted.ends[1].hosts, [after.address.ip()]);
        assert!(grant(&Relaying::Off, link, &before, &after).is_none());
        assert_eq!(way(&Relaying::Off, link, Side::Before, &before, &after).relay, None);
    }
}
