//! Masks of samplers: which tokens may follow a row, and which rows of a frame wait for one.

use crate::{
    codec::{Decode, Encode},
    frame::{Frame, FrameError},
    ids::{PlanEpoch, SessionId, StepId},
    limits::MASK_TOKENS,
    section::Sections,
};

/// Which tokens may follow one row: from the coordinator straight to the last stage.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Mask {
    /// The plan's epoch.
    pub epoch: PlanEpoch,
    /// The step that carries the row.
    pub step: StepId,
    /// Whose row it is.
    pub session: SessionId,
    /// The row's position in its session.
    pub position: u32,
    /// What may follow.
    pub tokens: TokenMask,
}

/// A set of tokens, in the shorter of two forms.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub enum TokenMask {
    /// A bit for each token, the lowest of a byte first. Tokens beyond the last byte are not in the set.
    Bits(Vec<u8>),
    /// The tokens, ascending.
    Ids(Vec<u32>),
}

impl TokenMask {
    /// The set in which a token is when its bit is set, the lowest of a byte first.
    pub fn of_bits(mut bits: Vec<u8>) -> Self {
        bits.truncate(bits.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        let count: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
        if ID_BYTES * count as usize <= bits.len() { Self::Ids(set_bits(&bits).collect()) } else { Self::Bits(bits) }
    }

    /// Whether a token is in the set.
    pub fn allows(&self, token: u32) -> bool {
        match self {
            Self::Bits(bits) => bits.get(token as usize / 8).is_some_and(|byte| byte >> (token % 8) & 1 == 1),
            Self::Ids(ids) => ids.binary_search(&token).is_ok(),
        }
    }

    /// A bit for each token, the lowest of a byte first.
    pub fn into_bits(self) -> Vec<u8> {
        match self {
            Self::Bits(bits) => bits,
            Self::Ids(ids) => {
                let mut bits = vec![0; ids.iter().max().map_or(0, |last| *last as usize / 8 + 1)];
                ids.iter().for_each(|id| bits[*id as usize / 8] |= 1 << (id % 8));
                bits
            }
        }
    }

    /// What is wrong with one that came from the other side, in words.
    pub(crate) fn wrong(&self) -> Option<String> {
        let beyond = || Some(format!("a mask of more than {MASK_TOKENS} tokens"));
        match self {
            Self::Bits(bits) if 8 * bits.len() > MASK_TOKENS => beyond(),
            Self::Ids(ids) if ids.last().is_some_and(|last| *last as usize >= MASK_TOKENS) => beyond(),
            Self::Ids(ids) if !ids.is_sorted_by(|one, next| one < next) => {
                Some("a mask whose ids do not ascend".into())
            }
            Self::Bits(_) | Self::Ids(_) => None,
        }
    }
}

/// Bytes of a token in a list of them.
const ID_BYTES: usize = 4;

/// The rows of a frame that are sampled only when their mask has come: a section of frames, which every stage passes on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MaskedRows(Vec<u8>);

impl MaskedRows {
    /// The tag of its section.
    pub const TAG: u16 = 7;

    /// Adds a row, by its place among those of the frame.
    pub fn insert(&mut self, row: usize) {
        if self.0.len() <= row / 8 {
            self.0.resize(row / 8 + 1, 0);
        }
        self.0[row / 8] |= 1 << (row % 8);
    }

    /// Whether a row waits.
    pub fn contains(&self, row: usize) -> bool {
        self.0.get(row / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
    }

    /// Puts them among a frame's sections, unless there are none.
    pub fn put(&self, sections: &mut Sections) {
        if !self.0.is_empty() {
            sections.set(Self::TAG, self.0.clone());
        }
    }

    /// Those of a frame.
    pub fn of(frame: &Frame) -> Self {
        Self(frame.sections.get(Self::TAG).map(|bytes| bytes.to_vec()).unwrap_or_default())
    }

    /// Each row of a frame that waits, by its session and its position there.
    pub fn places(frame: &Frame) -> Vec<(SessionId, u32)> {
        let waiting = Self::of(frame);
        let places = frame.spans().flat_map(|(segment, span)| {
            (segment.position..).zip(span).map(|(position, row)| (row, segment.session, position))
        });
        places.filter(|(row, ..)| waiting.contains(*row)).map(|(_, session, position)| (session, position)).collect()
    }

    /// Whether a frame of so many rows may say this.
    pub(crate) fn check(sections: &Sections, rows: usize) -> Result<(), FrameError> {
        let Some(bytes) = sections.get(Self::TAG) else { return Ok(()) };
        let last = set_bits(bytes).last();
        // Without zeros at the end, so that equal sets are equal bytes.
        let length = last.map_or(0, |last| last as usize / 8 + 1);
        if bytes.is_empty() || length != bytes.len() {
            let (stated, computed) = (bytes.len() as u64, length as u64);
            return Err(FrameError::Mismatch { what: "bytes of the masked rows", stated, computed });
        }
        match last {
            Some(last) if last as usize >= rows => {
                let (found, most) = (u64::from(last), rows.saturating_sub(1) as u64);
                Err(FrameError::Limit { what: "masked row", found, least: 0, most })
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn set_bits(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let bits = |(at, byte): (u32, u8)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| 8 * at + bit);
    (0..).zip(bytes.iter().copied()).filter(|(_, byte)| *byte != 0).flat_map(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FrameKind, Segment, Trail, Wants};

    fn frame() -> Frame {
        let segment = |session, position, rows| Segment {
            session: SessionId(session),
            position,
            rows,
            wants: Wants::All,
            trail: Trail(0),
        };
        let segments = vec![segment(5, 10, 2), segment(6, 0, 9)];
        let end = Frame::end(PlanEpoch(1), StepId(1));
        Frame { kind: FrameKind::Tokens, segments, ids: vec![1; 11], ..end }
    }

    #[test]
    fn the_shorter_form_says_the_same() {
        for ids in [vec![], vec![0], vec![151_000], (0..1000).collect(), (5..5000).step_by(7).collect::<Vec<u32>>()] {
            let mask = TokenMask::of_bits(TokenMask::Ids(ids.clone()).into_bits());
            assert_eq!(set_bits(&mask.clone().into_bits()).collect::<Vec<_>>(), ids);
            assert!((0..6000).all(|id| mask.allows(id) == ids.contains(&id)) && !mask.allows(u32::MAX));
            assert_eq!(mask.wrong(), None);
        }
        assert_eq!(TokenMask::of_bits(vec![8, 2, 0]), TokenMask::Bits(vec![8, 2]));
        assert_eq!(TokenMask::of_bits(vec![0, 0, 0, 1]), TokenMask::Ids(vec![24]));
        assert_eq!(TokenMask::of_bits(vec![0]), TokenMask::Ids(vec![]));
    }

    #[test]
    fn masks_that_make_no_sense_are_told() {
        for (mask, text) in [
            (TokenMask::Bits(vec![0; MASK_TOKENS / 8 + 1]), "more than"),
            (TokenMask::Ids(vec![MASK_TOKENS as u32]), "more than"),
            (TokenMask::Ids(vec![3, 3]), "ascend"),
            (TokenMask::Ids(vec![4, 3]), "ascend"),
        ] {
            assert!(mask.wrong().is_some_and(|wrong| wrong.contains(text)), "{mask:?}");
        }
    }

    #[test]
    fn a_frame_says_which_rows_wait() {
        let mut rows = MaskedRows::default();
        [1, 2, 10].into_iter().for_each(|row| rows.insert(row));
        let mut sent = frame();
        rows.put(&mut sent.sections);
        assert_eq!(sent.sections.get(7).map(|bytes| &bytes[..]), Some(&[6, 4][..]));
        let places = MaskedRows::places(&sent).into_iter().map(|(session, position)| (session.0, position));
        assert_eq!(places.collect::<Vec<_>>(), [(5, 11), (6, 0), (6, 8)]);
        assert_eq!(MaskedRows::of(&sent), rows);
        assert_eq!(MaskedRows::check(&sent.sections, 11), Ok(()));
        let beyond = FrameError::Limit { what: "masked row", found: 10, least: 0, most: 9 };
        assert_eq!(MaskedRows::check(&sent.sections, 10), Err(beyond));
        for padded in [&[][..], &[0], &[1, 0]] {
            sent.sections.set(7, padded.to_vec());
            assert!(matches!(MaskedRows::check(&sent.sections, 11), Err(FrameError::Mismatch { .. })), "{padded:?}");
        }
        let mut none = frame();
        MaskedRows::default().put(&mut none.sections);
        assert!(none.sections.is_empty() && MaskedRows::places(&none).is_empty());
    }
}
