//! Workers that have asked a rendezvous for this coordinator: their ways here, for as long as they are needed.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use qmesh_net::{
    Endpoint, Grant, Meeting, Message, PeerId, PlanEpoch, RelayEnd, RelayGrant, RelayTag, Seeker,
    limits::{GRANT_BYTES_PER_SECOND, GRANT_IDLE},
};

/// Who has asked, by the key that it has named.
#[derive(Debug, Default)]
pub(super) struct Seekers {
    met: BTreeMap<PeerId, Met>,
}

#[derive(Debug)]
struct Met {
    seeker: RelayTag,
    address: SocketAddr,
    since: Instant,
    /// What lets its packets in, and keeps the relay.
    _meeting: Meeting,
}

/// Whether a rendezvous may pass on what does not go straight.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Passing {
    Granted,
    Never,
}

impl Seekers {
    /// Somebody has asked the rendezvous at this address. Opens the way for it; what the rendezvous is to be told.
    pub(super) fn sought(
        &mut self,
        now: Instant,
        endpoint: &Endpoint,
        rendezvous: SocketAddr,
        seeker: Seeker,
        passing: Passing,
    ) -> Vec<Message> {
        let Some(address) = seeker.socket() else { return Vec::new() };
        let again = self.met.get(&seeker.peer).is_some_and(|met| met.seeker == seeker.tag && met.address == address);
        if again {
            // The answer may have been lost.
            return vec![Message::Introduce(seeker)];
        }
        self.make_room();
        let tag = RelayTag::random();
        let relay = (passing == Passing::Granted).then_some((rendezvous, tag));
        let meeting = endpoint.meet(seeker.peer, vec![address], relay);
        self.met.insert(seeker.peer, Met { seeker: seeker.tag, address, since: now, _meeting: meeting });
        let granted = relay.map(|_| grant(&seeker, address, (endpoint.peer_id(), tag)));
        granted.into_iter().chain([Message::Introduce(seeker)]).collect()
    }

    /// Somebody asks, by another way than a rendezvous, that this coordinator send to these addresses.
    pub(super) fn meet(&mut self, now: Instant, endpoint: &Endpoint, peer: PeerId, addresses: Vec<SocketAddr>) {
        let Some(&address) = addresses.first() else { return };
        self.make_room();
        let meeting = endpoint.meet(peer, addresses, None);
        self.met.insert(peer, Met { seeker: RelayTag::default(), address, since: now, _meeting: meeting });
    }

    /// Where the packets of a worker come from that are passed on to this coordinator.
    pub(super) fn address_of(&self, peer: PeerId) -> Option<SocketAddr> {
        self.met.get(&peer).map(|met| met.address)
    }

    /// Time has passed: ways are kept that are new, or used.
    pub(super) fn tick(&mut self, now: Instant, is_used: impl Fn(PeerId) -> bool) {
        self.met.retain(|&peer, met| now.saturating_duration_since(met.since) < TO_CONNECT || is_used(peer));
    }

    /// Whoever has a ticket can ask under any key: the oldest makes room.
    fn make_room(&mut self) {
        while self.met.len() >= SEEKERS
            && let Some(oldest) = self.met.iter().min_by_key(|(_, met)| met.since).map(|(&peer, _)| peer)
        {
            self.met.remove(&oldest);
        }
    }
}

/// What lets the rendezvous pass packets on between a seeker and the coordinator with this key and tag.
fn grant(seeker: &Seeker, address: SocketAddr, (coordinator, tag): (PeerId, RelayTag)) -> Message {
    let ends = [
        RelayEnd { peer: seeker.peer, tag: seeker.tag, hosts: vec![address.ip()] },
        // Only the rendezvous sees where that is.
        RelayEnd { peer: coordinator, tag, hosts: Vec::new() },
    ];
    let (bytes_per_second, idle) = (GRANT_BYTES_PER_SECOND, GRANT_IDLE);
    Message::Grant(Grant::of(&RelayGrant { ends, epoch: NO_PLAN, bytes_per_second, idle }))
}

/// Plans are counted from 1.
const NO_PLAN: PlanEpoch = PlanEpoch(0);
/// A worker has connected within this, or asks anew.
const TO_CONNECT: Duration = Duration::from_secs(30);
/// Ways that are kept at a time: a mesh has no more workers.
const SEEKERS: usize = 256;

#[cfg(test)]
mod tests {
    use qmesh_net::{Admission, Identity};

    use super::*;

    fn seeker(byte: u8, tag: u8) -> Seeker {
        Seeker { peer: PeerId([byte; 32]), tag: RelayTag([tag; 16]), address: "127.0.0.1:9".into() }
    }

    fn kinds(told: &[Message]) -> Vec<&str> {
        let kinds = told.iter().map(|message| {
            let is_grant = matches!(message, Message::Grant(_));
            assert!(is_grant || matches!(message, Message::Introduce(_)), "{message:?}");
            if is_grant { "grant" } else { "introduce" }
        });
        kinds.collect()
    }

    #[tokio::test]
    async fn who_asks_gets_a_way_that_lasts_while_it_is_used() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let endpoint = Endpoint::bind(listen, &Identity::ephemeral(), Admission::only([])).unwrap();
        let (mut seekers, now, rendezvous) = (Seekers::default(), Instant::now(), "127.0.0.1:8".parse().unwrap());
        let mut sought = |seeker, passing| seekers.sought(now, &endpoint, rendezvous, seeker, passing);
        assert_eq!(kinds(&sought(seeker(1, 1), Passing::Granted)), ["grant", "introduce"]);
        assert_eq!(kinds(&sought(seeker(1, 1), Passing::Granted)), ["introduce"], "the same question again");
        assert_eq!(kinds(&sought(seeker(1, 2), Passing::Granted)), ["grant", "introduce"], "it has begun anew");
        assert_eq!(kinds(&sought(seeker(2, 3), Passing::Never)), ["introduce"]);
        assert!(sought(Seeker { address: "nowhere".into(), ..seeker(3, 4) }, Passing::Granted).is_empty());
        seekers.meet(now, &endpoint, PeerId([4; 32]), vec!["127.0.0.1:7".parse().unwrap()]);
        seekers.meet(now, &endpoint, PeerId([5; 32]), Vec::new());
        let by_another_way = [4, 5].map(|byte| seekers.address_of(PeerId([byte; 32])));
        assert_eq!(by_another_way, [Some("127.0.0.1:7".parse().unwrap()), None]);
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
        assert_eq!(seekers.address_of(one), Some("127.0.0.1:9".parse().unwrap()));
        seekers.tick(now + TO_CONNECT, |peer| peer == one);
        assert_eq!([one, other].map(|peer| seekers.address_of(peer).is_some()), [true, false]);
        for number in 0..2 * SEEKERS {
            let peer = PeerId(std::array::from_fn(|i| (number >> (8 * i.min(3))) as u8));
            seekers.sought(now, &endpoint, rendezvous, Seeker { peer, ..seeker(0, 5) }, Passing::Never);
        }
        assert_eq!(seekers.met.len(), SEEKERS);
    }
}
