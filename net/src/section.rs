//! Sections: what a message or a frame's head says beyond its fixed part.
//!
//! They are written one after the other, each as `u16 tag | u32 length | bytes` in little-endian, in ascending order of
//! their tags. A receiver skips a section with an even tag that it does not know, and refuses whatever has one with an
//! odd tag that it does not know. `docs/wire.md` has the whole rule, and says what each tag is for.

use bytes::{BufMut, Bytes};
use thiserror::Error;

use crate::limits::SECTIONS;

/// Bytes of a section before its own: the tag and the length.
const SECTION_HEAD_BYTES: usize = 6;

/// The sections of one message or frame, in ascending order of their tags.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sections(Vec<Section>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Section {
    tag: u16,
    bytes: Bytes,
}

/// Sections that cannot be taken, or sent.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SectionError {
    /// The sender insists on a section that means nothing here.
    #[error("section {tag} must be understood, and this version does not know it")]
    Unknown {
        /// Its tag, an odd one.
        tag: u16,
    },
    /// A tag that is not above the one before it.
    #[error("section {tag} follows section {before}: tags ascend, and none comes twice")]
    Order {
        /// The tag.
        tag: u16,
        /// The tag of the section before.
        before: u16,
    },
    /// A section that is longer than what is there.
    #[error("section {tag} announces {stated} bytes where {left} are left")]
    Short {
        /// Its tag.
        tag: u16,
        /// The bytes that it announces.
        stated: u32,
        /// The bytes after its head.
        left: usize,
    },
    /// Bytes after the last section that are too few for another one.
    #[error("{bytes} bytes follow the last section")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Too many sections.
    #[error("more than {SECTIONS} sections")]
    Count,
    /// Sections that are too long together.
    #[error("sections of {bytes} bytes where {most} are the limit")]
    TooLong {
        /// Their length, heads included.
        bytes: usize,
        /// The limit.
        most: usize,
    },
}

impl Sections {
    /// Puts a section in its place; it takes the place of one with the same tag.
    pub fn set(&mut self, tag: u16, bytes: impl Into<Bytes>) {
        let section = Section { tag, bytes: bytes.into() };
        match self.0.binary_search_by_key(&tag, |section| section.tag) {
            Ok(at) => self.0[at] = section,
            Err(at) => self.0.insert(at, section),
        }
    }

    /// The bytes of the section with this tag.
    pub fn get(&self, tag: u16) -> Option<&Bytes> {
        let at = self.0.binary_search_by_key(&tag, |section| section.tag).ok()?;
        Some(&self.0[at].bytes)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a receiver that knows the tags in `known` may go on. Everybody who acts on a message asks this first.
    ///
    /// # Errors
    /// [`SectionError::Unknown`] with the first odd tag that is not among them.
    pub fn understood(&self, known: &[u16]) -> Result<(), SectionError> {
        let insists = |section: &&Section| section.tag % 2 == 1 && !known.contains(&section.tag);
        self.0.iter().find(insists).map_or(Ok(()), |section| Err(SectionError::Unknown { tag: section.tag }))
    }

    /// Bytes of all of them, heads included.
    pub(crate) fn wire_bytes(&self) -> usize {
        self.0.iter().map(|section| SECTION_HEAD_BYTES + section.bytes.len()).sum()
    }

    /// Whether they may be sent where `most` bytes are the limit.
    pub(crate) fn check(&self, most: usize) -> Result<(), SectionError> {
        let bytes = self.wire_bytes();
        match self.0.len() {
            0..=SECTIONS if bytes <= most => Ok(()),
            0..=SECTIONS => Err(SectionError::TooLong { bytes, most }),
            _ => Err(SectionError::Count),
        }
    }

    /// Writes all of them. [`Self::check`] bounds their lengths far below the width of the field.
    pub(crate) fn write(&self, out: &mut impl BufMut) {
        for Section { tag, bytes } in &self.0 {
            out.put_u16_le(*tag);
            out.put_u32_le(bytes.len() as u32);
            out.put_slice(bytes);
        }
    }

    /// The sections that make up `bytes`, where `most` bytes are the limit. Nothing is allocated for what is only
    /// announced.
    pub(crate) fn parse(mut bytes: &[u8], most: usize) -> Result<Self, SectionError> {
        if bytes.len() > most {
            return Err(SectionError::TooLong { bytes: bytes.len(), most });
        }
        let mut sections: Vec<Section> = Vec::new();
        while !bytes.is_empty() {
            let (section, rest) = parse_one(bytes)?;
            let tag = section.tag;
            if let Some(before) = sections.last().map(|section| section.tag).filter(|before| *before >= tag) {
                return Err(SectionError::Order { tag, before });
            }
            if sections.len() == SECTIONS {
                return Err(SectionError::Count);
            }
            sections.push(section);
            bytes = rest;
        }
        Ok(Self(sections))
    }
}

/// The first section, and what follows it.
fn parse_one(bytes: &[u8]) -> Result<(Section, &[u8]), SectionError> {
    let Some((&[t0, t1, l0, l1, l2, l3], rest)) = bytes.split_first_chunk::<SECTION_HEAD_BYTES>() else {
        return Err(SectionError::Trailing { bytes: bytes.len() });
    };
    let (tag, stated) = (u16::from_le_bytes([t0, t1]), u32::from_le_bytes([l0, l1, l2, l3]));
    let short = SectionError::Short { tag, stated, left: rest.len() };
    let (own, rest) = rest.split_at_checked(stated as usize).ok_or(short)?;
    Ok((Section { tag, bytes: Bytes::copy_from_slice(own) }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Random;

    fn three() -> Sections {
        let mut sections = Sections::default();
        sections.set(4, vec![9; 3]);
        sections.set(2, Bytes::from_static(b"two"));
        sections.set(0xffff, Bytes::new());
        sections.set(4, Bytes::from_static(b"four"));
        sections
    }

    fn written(sections: &Sections) -> Vec<u8> {
        let mut bytes = Vec::new();
        sections.write(&mut bytes);
        assert_eq!(bytes.len(), sections.wire_bytes());
        bytes
    }

    #[test]
    fn the_layout_is_this() {
        let bytes = written(&three());
        assert_eq!(bytes, b"\x02\0\x03\0\0\0two\x04\0\x04\0\0\0four\xff\xff\0\0\0\0");
        assert_eq!(Sections::parse(&bytes, bytes.len()), Ok(three()));
        assert_eq!(three().get(4).map(|bytes| &bytes[..]), Some(&b"four"[..]));
        assert_eq!((three().get(3), three().is_empty()), (None, false));
        assert_eq!(Sections::parse(&[], 0), Ok(Sections::default()));
    }

    #[test]
    fn only_odd_tags_must_be_understood() {
        let sections = three();
        assert_eq!(sections.understood(&[]), Err(SectionError::Unknown { tag: 0xffff }));
        assert_eq!(sections.understood(&[2, 0xffff]), Ok(()));
        assert_eq!(Sections::default().understood(&[]), Ok(()));
    }

    #[test]
    fn hostile_sections_are_refused_by_name() {
        let bytes = written(&three());
        // A length beyond the end, whatever it claims.
        for stated in [5, 1 << 20, u32::MAX] {
            let bytes = [&[8, 0][..], &stated.to_le_bytes(), b"four"].concat();
            assert_eq!(Sections::parse(&bytes, 100), Err(SectionError::Short { tag: 8, stated, left: 4 }));
        }
        // The same tag twice, and tags that fall.
        let twice = [&bytes[..9], &bytes[..9]].concat();
        assert_eq!(Sections::parse(&twice, 100), Err(SectionError::Order { tag: 2, before: 2 }));
        let falling = [&bytes[9..19], &bytes[..9]].concat();
        assert_eq!(Sections::parse(&falling, 100), Err(SectionError::Order { tag: 2, before: 4 }));
        // Too many, too long, and bytes that are no section.
        let many: Vec<u8> = (0..=SECTIONS as u16).flat_map(|tag| [tag as u8, 0, 0, 0, 0, 0]).collect();
        assert_eq!(Sections::parse(&many, many.len()), Err(SectionError::Count));
        let (bytes_most, most) = (bytes.len(), bytes.len() - 1);
        assert_eq!(Sections::parse(&bytes, most), Err(SectionError::TooLong { bytes: bytes_most, most }));
        for cut in [10, 14, 20] {
            assert!(Sections::parse(&bytes[..cut], 100).is_err(), "cut to {cut}");
        }
        assert_eq!(Sections::parse(&[&bytes[..], &[0; 5]].concat(), 100), Err(SectionError::Trailing { bytes: 5 }));
    }

    #[test]
    fn too_many_or_too_long_sections_are_not_sent() {
        let sections = three();
        let bytes = sections.wire_bytes();
        assert_eq!(sections.check(bytes), Ok(()));
        assert_eq!(sections.check(bytes - 1), Err(SectionError::TooLong { bytes, most: bytes - 1 }));
        let mut many = Sections::default();
        (0..=SECTIONS as u16).for_each(|tag| many.set(tag, Bytes::new()));
        assert_eq!(many.check(usize::MAX), Err(SectionError::Count));
    }

    #[test]
    fn mutated_sections_never_panic_and_stay_canonical() {
        let mut random = Random(3);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = written(&three());
            random.mutate(&mut bytes);
            if let Ok(sections) = Sections::parse(&bytes, 1 << 10) {
                accepted += 1;
                assert_eq!(written(&sections), bytes);
            }
        }
        assert!(accepted > 1000, "{accepted} of the mutations pass: the fuzz reaches too little");
    }
}
