//! Where the peers of a plan are, how a link between them came about, and who passes packets on: sections of messages.

use std::net::SocketAddr;

use crate::{
    aside::RelayTag,
    codec::{Decode, Encode},
    ids::PeerId,
    limits::{OWN_ADDRESSES, SOURCE_PEERS, TICKET_ADDRESSES},
    plain_section::plain_section,
    section::Sections,
    sources::{SectionContentError, find, put, within},
};

/// Where peers of a plan can be reached, as they see it and as the coordinator does: a section of `Load` and `Route`. Both sides
/// of a link hear it of each other, so that both can open the way at the same time.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct PeerWays {
    /// One entry for each of them.
    pub peers: Vec<PeerWay>,
}

/// Where one peer can be reached.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct PeerWay {
    /// Its key.
    pub peer: PeerId,
    /// Its addresses as `IP:port`, best first.
    pub addresses: Vec<String>,
    /// Who passes packets on, where no address answers.
    pub relay: Option<RelayWay>,
}

/// A relay on the way to a peer.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct RelayWay {
    /// What the receiver's packets carry.
    pub tag: RelayTag,
    /// Where the relay is, as `IP:port`; empty where it is the coordinator, which the receiver knows how to reach.
    pub addresses: Vec<String>,
}

/// Where a worker's socket is, by its own account: a section of `Hello`, and of `Moved`.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct OwnAddresses {
    /// Addresses of its machine with its port, as `IP:port`.
    pub addresses: Vec<String>,
}

/// How a stage's link to the next one came about: a section of `Linked`.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct LinkWay {
    /// Whether packets go straight.
    pub passage: Passage,
    /// Its round-trip time, in microseconds.
    pub rtt_us: u64,
}

/// How packets get from one end of a connection to the other.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Passage {
    /// Straight.
    Direct,
    /// By a relay, which cannot read them.
    Relayed,
}

impl PeerWays {
    /// The tag of its section.
    pub const TAG: u16 = 4;

    /// Puts it among the sections, unless it says nothing.
    ///
    /// # Errors
    /// It names more than a section may.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        self.check_counts()?;
        if self.peers.is_empty() { Ok(()) } else { put(Self::TAG, self, sections) }
    }

    /// What the sections say; nothing where they say nothing of it.
    ///
    /// # Errors
    /// The section is none, or names too much.
    pub fn find(sections: &Sections) -> Result<Self, SectionContentError> {
        let ways: Self = find(Self::TAG, sections)?;
        ways.check_counts()?;
        Ok(ways)
    }

    /// The way to a peer.
    pub fn to(&self, peer: PeerId) -> Option<&PeerWay> {
        self.peers.iter().find(|way| way.peer == peer)
    }

    fn check_counts(&self) -> Result<(), SectionContentError> {
        within(Self::TAG, "peers", self.peers.len(), SOURCE_PEERS)?;
        let relays = self.peers.iter().flat_map(|way| &way.relay).map(|relay| relay.addresses.len());
        let counts = self.peers.iter().map(|way| way.addresses.len()).chain(relays);
        within(Self::TAG, "addresses of a peer", counts.max().unwrap_or(0), TICKET_ADDRESSES)
    }
}

impl PeerWay {
    /// Its addresses, without what is none.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        sockets(&self.addresses)
    }
}

impl RelayWay {
    /// Where the relay is, for a receiver that reaches the coordinator at `coordinator`.
    pub fn at(&self, coordinator: SocketAddr) -> SocketAddr {
        sockets(&self.addresses).first().copied().unwrap_or(coordinator)
    }
}

impl OwnAddresses {
    /// The tag of its section.
    pub const TAG: u16 = 14;

    /// Puts as many of them among the sections as may be there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        let addresses: Vec<_> = self.addresses.iter().take(OWN_ADDRESSES).cloned().collect();
        if addresses.is_empty() { Ok(()) } else { put(Self::TAG, &Self { addresses }, sections) }
    }

    /// What the sections of such a message say; nothing where they say nothing of it.
    ///
    /// # Errors
    /// The section is none, or names too much.
    pub fn find(sections: &Sections) -> Result<Self, SectionContentError> {
        let own: Self = find(Self::TAG, sections)?;
        within(Self::TAG, "addresses", own.addresses.len(), OWN_ADDRESSES)?;
        Ok(own)
    }

    /// The addresses, without what is none.
    pub fn sockets(&self) -> Vec<SocketAddr> {
        sockets(&self.addresses)
    }
}

plain_section!(
    LinkWay,
    /// The tag of its section.
    16,
    /// What the sections of a `Linked` say; `None` where they say nothing of it.
);

impl Default for LinkWay {
    fn default() -> Self {
        Self { passage: Passage::Direct, rtt_us: 0 }
    }
}

fn sockets(addresses: &[String]) -> Vec<SocketAddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Random;

    fn ways() -> PeerWays {
        let relay = RelayWay { tag: RelayTag([5; 16]), addresses: vec![] };
        let way = |byte, relay| PeerWay { peer: PeerId([byte; 32]), addresses: vec!["10.0.0.1:7".into()], relay };
        PeerWays { peers: vec![way(1, None), way(2, Some(relay))] }
    }

    #[test]
    fn their_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(PeerWays::find(&sections), Ok(PeerWays::default()));
        ways().put(&mut sections).unwrap();
        let hex = data_encoding::HEXLOWER.encode(sections.get(4).unwrap());
        let address = ["0100000000000000", "0a00000000000000", "31302e302e302e313a37"].concat();
        let relay = ["01".into(), "05".repeat(16), "0000000000000000".into()].concat();
        let peers = ["01".repeat(32), address.clone(), "00".into(), "02".repeat(32), address, relay].concat();
        assert_eq!(hex, ["0200000000000000", &peers].concat());
        assert_eq!(PeerWays::find(&sections), Ok(ways()));
        assert_eq!(ways().to(PeerId([2; 32])).unwrap().sockets(), ["10.0.0.1:7".parse().unwrap()]);
        let link = LinkWay { passage: Passage::Relayed, rtt_us: 258 };
        link.put(&mut sections).unwrap();
        assert_eq!(sections.get(16).map(|bytes| &bytes[..]), Some(&[1, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!(LinkWay::find(&sections), Ok(Some(link)));
    }

    #[test]
    fn too_many_are_refused_and_what_is_no_address_is_passed_over() {
        let mut sections = Sections::default();
        let mut many = ways();
        many.peers[0].addresses = vec!["10.0.0.1:7".into(); TICKET_ADDRESSES + 1];
        assert!(matches!(many.put(&mut sections), Err(SectionContentError::TooMany { tag: 4, .. })));
        let own = OwnAddresses { addresses: vec!["\u{1b}[2J".into(), "[fd00::1]:9".into()] };
        own.put(&mut sections).unwrap();
        assert_eq!(OwnAddresses::find(&sections).unwrap().sockets(), ["[fd00::1]:9".parse().unwrap()]);
    }

    #[test]
    fn mutated_sections_never_panic() {
        let mut sections = Sections::default();
        ways().put(&mut sections).unwrap();
        let whole = sections.get(4).unwrap().to_vec();
        let mut random = Random(11);
        for _ in 0..5_000 {
            let mut bytes = whole.clone();
            random.mutate(&mut bytes);
            let mut sections = Sections::default();
            sections.set(4, bytes);
            let _ = PeerWays::find(&sections);
        }
    }
}
