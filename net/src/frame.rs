//! Frames: one micro-batch on a link. Their bytes are `head.rs`'s business; nothing here looks inside a row.

use std::{iter, ops::Range, time::Duration};

use bytes::Bytes;
use thiserror::Error;

use crate::{
    ids::{PlanEpoch, SessionId, StepId},
    section::{SectionError, Sections},
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

/// What the coordinator wants of a segment's rows on the last stage.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Wants {
    /// Nothing: a prompt's chunk that is not its last.
    #[default]
    None,
    /// A sample after the last row.
    Last,
    /// A sample after every row: drafts to verify, or scores of a prompt.
    All,
    /// The sum of all rows after the final norm.
    Sum,
    /// The same of the last row alone.
    SumLast,
}

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
    /// The sender's hash of the sequence's ids from its first to the segment's last.
    pub trail: Trail,
}

/// Where the time of a step went, so far, in microseconds; each stage adds its own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StepTimes {
    /// Computing, over all stages.
    pub compute_us: u32,
    /// Computing, on the stage that took the longest.
    pub slowest_us: u32,
    /// Waiting for a stage to have finished what came before.
    pub queued_us: u32,
}

/// One micro-batch on a link.
///
/// `ids` has one token id per row. In a `Sampled` frame rows, positions and ids are those of the sampled rows only, `width`
/// counts the candidates per row, and the sums of segments that want one ([`crate::RowSum`]) follow the rows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What the payload is.
    pub kind: FrameKind,
    /// The plan the frame belongs to.
    pub epoch: PlanEpoch,
    /// The step it belongs to.
    pub step: StepId,
    /// Values per `Hidden` row, candidates per `Sampled` row.
    pub width: u32,
    /// Where the time of its step went, so far.
    pub times: StepTimes,
    /// The sequences, in the order of their rows.
    pub segments: Vec<Segment>,
    /// The token id of each row.
    pub ids: Vec<u32>,
    /// The rows; those of a `Hidden` frame are f32.
    pub payload: Bytes,
    /// What only some frames say, as [`crate::MaskedRows`]. A stage passes on only what it knows.
    pub sections: Sections,
}

/// Bytes that are not a frame, or a frame that has no bytes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes do not start with a frame.
    #[error("not a frame: starts with {found:#06x}")]
    Magic {
        /// The first two bytes.
        found: u16,
    },
    /// Fewer bytes than the head says.
    #[error("head of {have} bytes, {need} are needed")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A code or flag this version does not know.
    #[error("unknown {what} {code}")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The code.
        code: u32,
    },
    /// A count outside its limits.
    #[error("{what} of {found}, outside {least} to {most}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The count.
        found: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// Two parts of the frame disagree.
    #[error("{what}: stated {stated}, computed {computed}")]
    Mismatch {
        /// What was counted.
        what: &'static str,
        /// What the frame says.
        stated: u64,
        /// What it is.
        computed: u64,
    },
    /// Sections that cannot be taken.
    #[error(transparent)]
    Section(#[from] SectionError),
    /// A frame that has no business on this link.
    #[error("a frame of kind {found:?} where {wanted:?} is due")]
    Kind {
        /// The kind it has.
        found: FrameKind,
        /// The kind that the link is for.
        wanted: FrameKind,
    },
    /// Rows that do not decode.
    #[error("sampled frame has kind {kind:?}")]
    NotSampled {
        /// The kind it has.
        kind: FrameKind,
    },
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

impl Wants {
    pub(crate) const fn code(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Last => 1,
            Self::All => 2,
            Self::Sum => 3,
            Self::SumLast => 4,
        }
    }

    /// Whether a sum of rows is wanted.
    pub const fn is_sum(self) -> bool {
        match self {
            Self::Sum | Self::SumLast => true,
            Self::None | Self::Last | Self::All => false,
        }
    }

    pub(crate) const fn from_code(code: u16) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Last),
            2 => Some(Self::All),
            3 => Some(Self::Sum),
            4 => Some(Self::SumLast),
            _ => None,
        }
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
        let (segments, ids, payload, sections) = (Vec::new(), Vec::new(), Bytes::new(), Sections::default());
        let times = StepTimes::default();
        Self { kind: FrameKind::End, epoch, step, width: 0, times, segments, ids, payload, sections }
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
