//! Frames: one micro-batch on a link. Their bytes are `head.rs`'s business; nothing here looks inside a row.

use std::{
    iter,
    ops::{BitOr, Range},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    ids::{PlanEpoch, SessionId, StepId},
    trail::Trail,
};

/// What a frame carries.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FrameKind {
    /// Stage to stage: one activation row per token.
    Hidden,
    /// Coordinator to stage 0: token ids only.
    Tokens,
    /// Last stage to coordinator: [`crate::Sampled`] rows.
    Sampled,
    /// The sender is done with this link; nothing follows.
    End,
}

/// How the values of an activation row are written.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum WireType {
    /// 4 bytes a value, lossless.
    #[default]
    F32,
    /// 2 bytes a value.
    F16,
    /// Blocks of 32 values: an f16 scale and 32 bytes.
    Q8,
}

/// Which rows of a segment the coordinator wants sampled.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Wants {
    /// None: a prompt's chunk that is not its last.
    #[default]
    None,
    /// The last row.
    Last,
    /// Every row: drafts to verify, or scores of a prompt.
    All,
}

/// What a segment is, one property a bit.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct SegmentFlags(u32);

/// The rows of one sequence in a frame. Its KV holds `position + rows` positions afterwards.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Whose rows.
    pub session: SessionId,
    /// Position of the first row in its sequence.
    pub position: u32,
    /// How many rows; only a `Sampled` frame may have a segment with none.
    pub rows: u32,
    /// Which rows to sample.
    pub wants: Wants,
    /// What the segment is.
    pub flags: SegmentFlags,
    /// The sender's hash of the sequence's ids from its first to the segment's last.
    pub trail: Trail,
}

/// Where the time of a step went, so far, in microseconds; each stage adds its own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StepTimes {
    /// Computing, over all stages.
    pub compute_us: u32,
    /// Computing, on the stage that took longest.
    pub slowest_us: u32,
    /// Waiting for a stage to have finished what came before.
    pub queued_us: u32,
}

/// One micro-batch on a link.
///
/// `ids` has one token id per row. In a `Sampled` frame rows, positions and ids are those of the sampled rows only, and
/// `width` counts the candidates per row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// How `Hidden` rows are written.
    pub wire: WireType,
    /// The plan the frame belongs to.
    pub epoch: PlanEpoch,
    /// The step it belongs to.
    pub step: StepId,
    /// Values per `Hidden` row, candidates per `Sampled` row.
    pub width: u32,
    /// Where its time went.
    pub times: StepTimes,
    /// The sequences, in the order of their rows.
    pub segments: Vec<Segment>,
    /// The token id of each row.
    pub ids: Vec<u32>,
    /// The rows.
    pub payload: Bytes,
}

/// Whether frames end with a hash of their payload, for journals and debugging.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PayloadSum {
    /// The link's encryption already authenticates every byte.
    #[default]
    Off,
    /// 8 bytes of BLAKE3 follow the payload.
    On,
}

impl FrameKind {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Hidden => 1,
            Self::Tokens => 2,
            Self::Sampled => 4,
            Self::End => 5,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Hidden),
            2 => Some(Self::Tokens),
            4 => Some(Self::Sampled),
            5 => Some(Self::End),
            _ => None,
        }
    }
}

impl WireType {
    /// Bytes of a row of `width` values; `None` when the width does not fill whole blocks.
    pub fn row_bytes(self, width: u32) -> Option<u64> {
        let width = u64::from(width);
        match self {
            Self::F32 => Some(4 * width),
            Self::F16 => Some(2 * width),
            Self::Q8 => width.is_multiple_of(32).then_some(34 * (width / 32)),
        }
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8 => 4,
        }
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            4 => Some(Self::Q8),
            _ => None,
        }
    }
}

impl SegmentFlags {
    /// The rows are a prompt's, not generated.
    pub const PREFILL: Self = Self(1 << 2);
    /// The rows were computed before and only rebuild KV.
    pub const REPLAY: Self = Self(1 << 3);
    /// The last chunk of a prompt.
    pub const LAST: Self = Self(1 << 4);

    const ALL: Self = Self(Self::PREFILL.0 | Self::REPLAY.0 | Self::LAST.0);

    /// Whether all of `other`'s properties hold.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The wire's word for flags and wants together.
    pub(crate) const fn word(self, wants: Wants) -> u32 {
        self.0
            | match wants {
                Wants::None => 0,
                Wants::Last => 1,
                Wants::All => 2,
            }
    }

    /// The reverse of `word`. Unknown bits in the lower half are `None`, those in the upper half are optional.
    pub(crate) const fn from_word(word: u32) -> Option<(Self, Wants)> {
        let wants = match word & 3 {
            0 => Wants::None,
            1 => Wants::Last,
            2 => Wants::All,
            _ => return None,
        };
        let flags = word & 0xfffc;
        if flags & !Self::ALL.0 == 0 { Some((Self(flags), wants)) } else { None }
    }
}

impl BitOr for SegmentFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl StepTimes {
    /// These times and another stage's.
    #[must_use]
    pub fn and_stage(self, compute: Duration, queued: Duration) -> Self {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let compute_us = micros(compute);
        Self {
            compute_us: self.compute_us.saturating_add(compute_us),
            slowest_us: self.slowest_us.max(compute_us),
            queued_us: self.queued_us.saturating_add(micros(queued)),
        }
    }
}

impl Frame {
    /// The frame that ends a link.
    pub fn end(epoch: PlanEpoch, step: StepId) -> Self {
        let (segments, ids, payload) = (Vec::new(), Vec::new(), Bytes::new());
        let times = StepTimes::default();
        Self { kind: FrameKind::End, wire: WireType::F32, epoch, step, width: 0, times, segments, ids, payload }
    }

    /// Rows over all segments.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Each segment with the range of its rows in `ids` and payload.
    pub fn spans(&self) -> impl Iterator<Item = (&Segment, Range<usize>)> {
        let mut segments = self.segments.iter();
        let mut start = 0;
        iter::from_fn(move || {
            let segment = segments.next()?;
            let rows = start..start + segment.rows as usize;
            start = rows.end;
            Some((segment, rows))
        })
    }
}
