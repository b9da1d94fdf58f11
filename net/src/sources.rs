//! Who has which tensors, who may ask for them, and where they came from: what messages say of weights in sections.

use thiserror::Error;

use crate::{
    codec::{self, Decode, Encode},
    ids::PeerId,
    limits::{SOURCE_PEERS, SOURCE_TENSORS, SOURCES_OF_TENSOR, TICKET_ADDRESSES},
    plain::plain,
    section::Sections,
};

/// Which workers can be asked for which tensors of a plan, before the coordinator is: a section of `Load`.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct WeightSources {
    /// The workers that are named below, by their place here.
    pub peers: Vec<WeightPeer>,
    /// The tensors that somebody can be asked for.
    pub tensors: Vec<TensorSources>,
}

/// A worker that can be asked for tensors.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct WeightPeer {
    /// Its key.
    pub peer: PeerId,
    /// What it is called, for people.
    pub name: String,
    /// Where it can be dialled, best first.
    pub addresses: Vec<String>,
}

/// Who can be asked for one tensor, in this order.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct TensorSources {
    /// Its place among the tensors of the `Load`.
    pub tensor: u32,
    /// Who can be asked.
    pub sources: Vec<WeightSource>,
}

/// A worker that can be asked for a tensor.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub struct WeightSource {
    /// Its place in [`WeightSources::peers`].
    pub peer: u16,
    /// Whether it has the tensor.
    pub stock: Stock,
}

/// Whether a worker has a tensor.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum Stock {
    /// It was loaded there for an earlier plan.
    Held,
    /// The worker gets it by the same plan, before all others that want it.
    Coming,
}

/// Who may ask the receiver for tensors as long as it has a stage of the plan: a section of `Load`.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct WeightAskers {
    /// Their keys.
    pub peers: Vec<PeerId>,
    /// The tensors that they wait for, by their place among those of the `Load`: they are fetched before others.
    pub first: Vec<u32>,
}

/// Where the tensors of a stage came from so far: a section of `ShardStatus`.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct WeightOrigin {
    /// Bytes that the coordinator sent.
    pub coordinator_bytes: u64,
    /// Bytes that other workers sent.
    pub peer_bytes: u64,
}

/// A section that says nothing that could be done.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SectionContentError {
    /// Its bytes are no such section.
    #[error("section {tag} does not parse: {text}")]
    Malformed {
        /// Its tag.
        tag: u16,
        /// What the decoder says.
        text: String,
    },
    /// More of something than there may be.
    #[error("section {tag} names {found} {what} where {most} are the limit")]
    TooMany {
        /// Its tag.
        tag: u16,
        /// What there is too much of.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// A worker that is not in its list.
    #[error("section 2 sends for tensor {tensor} to peer {peer} of {peers}")]
    Peer {
        /// For this tensor.
        tensor: u32,
        /// The place it names.
        peer: u16,
        /// How many are in the list.
        peers: usize,
    },
    /// A tensor that is not among those of the `Load`.
    #[error("section {tag} names tensor {tensor} of {tensors}")]
    Tensor {
        /// Its tag.
        tag: u16,
        /// The place it names.
        tensor: u32,
        /// How many there are.
        tensors: usize,
    },
}

impl WeightSources {
    /// The tag of its section.
    pub const TAG: u16 = 2;

    /// Puts it among the sections, unless it says nothing.
    ///
    /// # Errors
    /// It names more than a section may.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        self.check_counts()?;
        if self.tensors.is_empty() { Ok(()) } else { put(Self::TAG, self, sections) }
    }

    /// What the sections of a `Load` with so many tensors say; nothing where they say nothing of it.
    ///
    /// # Errors
    /// The section is none, names too much, or names what is not there.
    pub fn find(sections: &Sections, tensors: usize) -> Result<Self, SectionContentError> {
        let mut sources: Self = find(Self::TAG, sections)?;
        sources.check_counts()?;
        for TensorSources { tensor, sources: of_tensor } in &sources.tensors {
            if *tensor as usize >= tensors {
                return Err(SectionContentError::Tensor { tag: Self::TAG, tensor: *tensor, tensors });
            }
            let peers = sources.peers.len();
            if let Some(source) = of_tensor.iter().find(|source| usize::from(source.peer) >= peers) {
                return Err(SectionContentError::Peer { tensor: *tensor, peer: source.peer, peers });
            }
        }
        for peer in &mut sources.peers {
            peer.name = plain(&peer.name);
        }
        Ok(sources)
    }

    fn check_counts(&self) -> Result<(), SectionContentError> {
        let addresses = self.peers.iter().map(|peer| peer.addresses.len()).max().unwrap_or(0);
        let of_tensor = self.tensors.iter().map(|tensor| tensor.sources.len()).max().unwrap_or(0);
        within(Self::TAG, "peers", self.peers.len(), SOURCE_PEERS)?;
        within(Self::TAG, "addresses of a peer", addresses, TICKET_ADDRESSES)?;
        within(Self::TAG, "tensors", self.tensors.len(), SOURCE_TENSORS)?;
        within(Self::TAG, "sources of a tensor", of_tensor, SOURCES_OF_TENSOR)
    }
}

impl WeightAskers {
    /// The tag of its section.
    pub const TAG: u16 = 8;

    /// Puts it among the sections, unless it says nothing.
    ///
    /// # Errors
    /// It names more than a section may.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        self.check_counts()?;
        if self.peers.is_empty() { Ok(()) } else { put(Self::TAG, self, sections) }
    }

    /// What the sections of a `Load` with so many tensors say; nobody where they say nothing of it.
    ///
    /// # Errors
    /// The section is none, names too many, or names what is not there.
    pub fn find(sections: &Sections, tensors: usize) -> Result<Self, SectionContentError> {
        let askers: Self = find(Self::TAG, sections)?;
        askers.check_counts()?;
        match askers.first.iter().find(|&&tensor| tensor as usize >= tensors) {
            Some(&tensor) => Err(SectionContentError::Tensor { tag: Self::TAG, tensor, tensors }),
            None => Ok(askers),
        }
    }

    fn check_counts(&self) -> Result<(), SectionContentError> {
        within(Self::TAG, "peers", self.peers.len(), SOURCE_PEERS)?;
        within(Self::TAG, "tensors", self.first.len(), SOURCE_TENSORS)
    }
}

impl WeightOrigin {
    /// The tag of its section.
    pub const TAG: u16 = 10;

    /// Puts it among the sections, unless nothing has come yet.
    ///
    /// # Errors
    /// Never in this version: nothing in it can be too long.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        if *self == Self::default() { Ok(()) } else { put(Self::TAG, self, sections) }
    }

    /// What the sections of a `ShardStatus` say; zeros where they say nothing of it.
    ///
    /// # Errors
    /// The section is none.
    pub fn find(sections: &Sections) -> Result<Self, SectionContentError> {
        find(Self::TAG, sections)
    }
}

pub(crate) fn put<T: Encode>(tag: u16, value: &T, sections: &mut Sections) -> Result<(), SectionContentError> {
    let bytes = codec::to_bytes(value).map_err(|text| SectionContentError::Malformed { tag, text })?;
    sections.set(tag, bytes);
    Ok(())
}

pub(crate) fn find<T: Decode<()> + Default>(tag: u16, sections: &Sections) -> Result<T, SectionContentError> {
    let Some(bytes) = sections.get(tag) else { return Ok(T::default()) };
    let malformed = |text| SectionContentError::Malformed { tag, text };
    match codec::from_bytes(bytes).map_err(malformed)? {
        (value, []) => Ok(value),
        (_, rest) => Err(malformed(format!("{} bytes too many", rest.len()))),
    }
}

/// As [`find`], `None` where there is no such section.
pub(crate) fn find_some<T: Decode<()> + Default>(
    tag: u16,
    sections: &Sections,
) -> Result<Option<T>, SectionContentError> {
    sections.get(tag).map(|_| find(tag, sections)).transpose()
}

pub(crate) fn within(tag: u16, what: &'static str, found: usize, most: usize) -> Result<(), SectionContentError> {
    if found <= most { Ok(()) } else { Err(SectionContentError::TooMany { tag, what, found, most }) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{limits::MESSAGE_SECTIONS_BYTES, tests::Random};

    fn sources() -> WeightSources {
        let peer = |byte: u8, name: &str| WeightPeer {
            peer: PeerId([byte; 32]),
            name: name.into(),
            addresses: vec![format!("h:{byte}")],
        };
        let source = |peer, stock| WeightSource { peer, stock };
        let both = vec![source(1, Stock::Held), source(0, Stock::Coming)];
        WeightSources {
            peers: vec![peer(1, "a"), peer(2, "b")],
            tensors: vec![TensorSources { tensor: 5, sources: both }],
        }
    }

    fn sections(tag: u16, bytes: Vec<u8>) -> Sections {
        let mut sections = Sections::default();
        sections.set(tag, bytes);
        sections
    }

    #[test]
    fn their_bytes_never_change() {
        let mut sections = Sections::default();
        sources().put(&mut sections).unwrap();
        WeightAskers { peers: vec![PeerId([7; 32])], first: vec![4] }.put(&mut sections).unwrap();
        WeightOrigin { coordinator_bytes: 3, peer_bytes: 258 }.put(&mut sections).unwrap();
        let hex = |tag| data_encoding::HEXLOWER.encode(sections.get(tag).unwrap());
        let length = |n: u8| format!("{n:02x}{}", "00".repeat(7));
        let peer = |byte: &str, name: &str, address: &str| {
            [byte.repeat(32), length(1), name.into(), length(1), length(3), address.into()].concat()
        };
        let peers = [length(2), peer("01", "61", "683a31"), peer("02", "62", "683a32")].concat();
        let tensors = [length(1), "05000000".into(), length(2), "010000000000".into(), "000001000000".into()].concat();
        assert_eq!(hex(2), peers + &tensors);
        assert_eq!(hex(8), [length(1), "07".repeat(32), length(1), "04000000".into()].concat());
        assert_eq!(hex(10), "03000000000000000201000000000000");
        assert_eq!(WeightSources::find(&sections, 6), Ok(sources()));
        assert_eq!(WeightAskers::find(&sections, 5).unwrap().peers, [PeerId([7; 32])]);
        let beyond = SectionContentError::Tensor { tag: 8, tensor: 4, tensors: 4 };
        assert_eq!(WeightAskers::find(&sections, 4), Err(beyond));
        assert_eq!(WeightOrigin::find(&sections).unwrap().peer_bytes, 258);
    }

    #[test]
    fn who_says_nothing_sends_nothing() {
        let mut sections = Sections::default();
        WeightSources::default().put(&mut sections).unwrap();
        WeightAskers::default().put(&mut sections).unwrap();
        WeightOrigin::default().put(&mut sections).unwrap();
        assert!(sections.is_empty());
        assert_eq!(WeightSources::find(&sections, 0), Ok(WeightSources::default()));
        assert_eq!(WeightOrigin::find(&sections), Ok(WeightOrigin::default()));
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let mut named = Sections::default();
        sources().put(&mut named).unwrap();
        assert_eq!(WeightSources::find(&named, 5), Err(SectionContentError::Tensor { tag: 2, tensor: 5, tensors: 5 }));
        let mut wrong = sources();
        wrong.tensors[0].sources[1].peer = 2;
        wrong.put(&mut named).unwrap();
        let missing = SectionContentError::Peer { tensor: 5, peer: 2, peers: 2 };
        assert_eq!(WeightSources::find(&named, 6), Err(missing));
        let whole = named.get(2).unwrap().to_vec();
        for cut in 0..whole.len() {
            let found = WeightSources::find(&sections(2, whole[..cut].to_vec()), 6);
            assert!(matches!(found, Err(SectionContentError::Malformed { tag: 2, .. })), "cut to {cut}: {found:?}");
        }
        let more = [&whole[..], &[0]].concat();
        assert!(matches!(WeightSources::find(&sections(2, more), 6), Err(SectionContentError::Malformed { .. })));
    }

    #[test]
    fn the_most_that_may_be_named_fits_into_a_load() {
        let mut sources = sources();
        sources.peers.resize(SOURCE_PEERS + 1, sources.peers[0].clone());
        let many = SectionContentError::TooMany { tag: 2, what: "peers", found: SOURCE_PEERS + 1, most: SOURCE_PEERS };
        assert_eq!(sources.put(&mut Sections::default()), Err(many));
        sources.peers.pop();
        sources.peers.iter_mut().for_each(|peer| peer.name = "x".repeat(256));
        sources.tensors.resize(SOURCE_TENSORS, sources.tensors[0].clone());
        let mut sections = Sections::default();
        sources.put(&mut sections).unwrap();
        let askers = WeightAskers { peers: vec![PeerId([7; 32]); SOURCE_PEERS], first: vec![0; SOURCE_TENSORS] };
        askers.put(&mut sections).unwrap();
        assert_eq!(sections.check(MESSAGE_SECTIONS_BYTES), Ok(()));
    }

    #[test]
    fn mutated_sections_never_panic_and_names_are_plain() {
        let mut spelled = sources();
        spelled.peers[0].name = "\u{1b}[2J".into();
        let mut sections = Sections::default();
        spelled.put(&mut sections).unwrap();
        assert_eq!(WeightSources::find(&sections, 6).unwrap().peers[0].name, "\\u{1b}[2J");
        let whole = sections.get(2).unwrap().to_vec();
        let mut random = Random(9);
        for _ in 0..5_000 {
            let mut bytes = whole.clone();
            random.mutate(&mut bytes);
            let mut sections = Sections::default();
            sections.set(2, Bytes::from(bytes));
            let _ = WeightSources::find(&sections, 6);
        }
    }
}
