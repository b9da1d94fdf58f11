//! The bytes before a frame's payload: a fixed part, the segments, the token ids, zeros up to a multiple of 32.
//!
//! Everything is checked before anything is allocated; little-endian throughout.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | magic `0x514D` |
//! | 2 | 1 | kind: 1 hidden, 2 tokens, 4 sampled, 5 end |
//! | 3 | 1 | wire type: 0 f32, 1 f16, 4 q8 |
//! | 4 | 2 | flags: bit 0 a payload sum follows; the upper 8 may be ignored |
//! | 6 | 2 | segments |
//! | 8 | 4 | step |
//! | 12 | 4 | plan epoch |
//! | 16 | 4 | width |
//! | 20 | 4 | rows over all segments |
//! | 24 | 4 | bytes of the payload |
//! | 28 | 4 | CRC-32C of all bytes before the payload, these four as zero |
//! | 32 | 12 | step times, microseconds: compute u32, slowest stage's compute u32, queued u32 |
//! | 44 | 4 | zero |
//! | 48 | 32 each | segment: session u64, position u32, rows u32, flags u32, zero u32, trail u64 |
//! | … | 4 each | token id of each row |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::{
    frame::{Frame, FrameKind, PayloadSum, Segment, SegmentFlags, StepTimes, WireType},
    ids::{PlanEpoch, SessionId, StepId},
    limits::{
        CANDIDATES, FIXED_HEAD_BYTES, FRAME_PAYLOAD_BYTES, FRAME_ROWS, FRAME_SEGMENTS, FRAME_WIDTH, HEAD_ALIGNMENT,
        SEGMENT_BYTES,
    },
    sampled,
    trail::Trail,
};

const MAGIC: u16 = 0x514d;
const CRC_OFFSET: usize = 28;
const FLAG_SUM: u16 = 1;
/// Frame flags a receiver must know; the others are optional.
const CRITICAL_FLAGS: u16 = 0x00ff;
/// Bytes of the sum after a payload.
const SUM_BYTES: usize = 8;

/// Bytes that are not a frame, or a frame that has no bytes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
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
    /// The width does not fill the wire type's blocks.
    #[error("width {width} is not a multiple of 32, which q8 needs")]
    Blocks {
        /// The width.
        width: u32,
    },
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

/// A head whose every field was checked; the payload is still to come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrameHead {
    fixed: FixedHead,
    segments: Vec<Segment>,
    ids: Vec<u32>,
}

/// The fixed part, which says how many bytes follow. All its fields are within limits and agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FixedHead {
    kind: FrameKind,
    wire: WireType,
    sum: PayloadSum,
    segments: usize,
    step: StepId,
    epoch: PlanEpoch,
    width: u32,
    rows: usize,
    payload_bytes: usize,
    times: StepTimes,
    crc: u32,
}

impl FrameHead {
    /// Checks and reads a whole head, without the payload.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let short = |need| FrameError::Short { have: bytes.len(), need };
        let fixed = FixedHead::parse(bytes.first_chunk().ok_or(short(FIXED_HEAD_BYTES))?)?;
        let table = bytes.get(FIXED_HEAD_BYTES..fixed.head_bytes()).ok_or(short(fixed.head_bytes()))?;
        equal("bytes of the head", bytes.len() as u64, fixed.head_bytes() as u64)?;
        equal("checksum of the head", u64::from(fixed.crc), u64::from(checksum(bytes)))?;
        let (mut segments, rest) = table.split_at(fixed.segments * SEGMENT_BYTES);
        let (mut ids, padding) = rest.split_at(fixed.rows * 4);
        equal("padding of the head", 0, padding.iter().map(|byte| u64::from(*byte)).sum())?;
        let segments = (0..fixed.segments).map(|_| parse_segment(&mut segments, fixed.kind));
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        equal("rows", fixed.rows as u64, segments.iter().map(|segment| u64::from(segment.rows)).sum())?;
        let ids = (0..fixed.rows).map(|_| ids.get_u32_le()).collect();
        Ok(Self { fixed, segments, ids })
    }

    /// Bytes of the payload that follows.
    pub fn payload_bytes(&self) -> usize {
        self.fixed.payload_bytes
    }

    /// Joins the head with the bytes after it: the payload and its sum, if the head announces one.
    pub(crate) fn into_frame(self, mut tail: Bytes) -> Result<Frame, FrameError> {
        let Self { fixed, segments, ids } = self;
        let FixedHead { kind, wire, epoch, step, width, times, .. } = fixed;
        equal("bytes after the head", tail.len() as u64, (fixed.payload_bytes + fixed.sum_bytes()) as u64)?;
        let payload = tail.split_to(fixed.payload_bytes);
        match fixed.sum {
            PayloadSum::Off => {}
            PayloadSum::On => equal("sum of the payload", tail.get_u64_le(), payload_sum(&payload))?,
        }
        Ok(Frame { kind, wire, epoch, step, width, times, segments, ids, payload })
    }
}

impl FixedHead {
    pub(crate) fn parse(bytes: &[u8; FIXED_HEAD_BYTES]) -> Result<Self, FrameError> {
        let mut bytes = &bytes[..];
        let magic = bytes.get_u16_le();
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let (kind, wire, flags) = (bytes.get_u8(), bytes.get_u8(), bytes.get_u16_le());
        let unknown = |what, code: u8| FrameError::Unknown { what, code: code.into() };
        if flags & CRITICAL_FLAGS & !FLAG_SUM != 0 {
            return Err(FrameError::Unknown { what: "frame flags", code: flags.into() });
        }
        let segments = usize::from(bytes.get_u16_le());
        let (step, epoch) = (StepId(bytes.get_u32_le()), PlanEpoch(bytes.get_u32_le()));
        let (width, rows, stated) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
        let kind = FrameKind::from_code(kind).ok_or(unknown("frame kind", kind))?;
        let wire = WireType::from_code(wire).ok_or(unknown("wire type", wire))?;
        let payload_bytes = check_shape(kind, wire, segments, rows as usize, width)?;
        equal("bytes of the payload", stated.into(), payload_bytes as u64)?;
        let sum = if flags & FLAG_SUM == 0 { PayloadSum::Off } else { PayloadSum::On };
        let crc = bytes.get_u32_le();
        let (compute_us, slowest_us, queued_us) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
        let times = StepTimes { compute_us, slowest_us, queued_us };
        equal("reserved field of the head", 0, bytes.get_u32_le().into())?;
        Ok(Self { kind, wire, sum, segments, step, epoch, width, rows: rows as usize, payload_bytes, times, crc })
    }

    pub(crate) fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Bytes before the payload.
    pub(crate) fn head_bytes(&self) -> usize {
        head_bytes(self.segments, self.rows)
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.head_bytes() + self.payload_bytes + self.sum_bytes()
    }

    fn sum_bytes(&self) -> usize {
        match self.sum {
            PayloadSum::Off => 0,
            PayloadSum::On => SUM_BYTES,
        }
    }
}

impl Frame {
    /// All bytes before the payload, or what is wrong with the frame.
    pub fn head_bytes(&self, sum: PayloadSum) -> Result<Bytes, FrameError> {
        let payload_bytes = check_shape(self.kind, self.wire, self.segments.len(), self.rows(), self.width)?;
        equal("bytes of the payload", self.payload.len() as u64, payload_bytes as u64)?;
        equal("rows", self.rows() as u64, self.segments.iter().map(|segment| u64::from(segment.rows)).sum())?;
        let mut head = BytesMut::zeroed(head_bytes(self.segments.len(), self.rows()));
        let mut out = &mut head[..];
        out.put_u16_le(MAGIC);
        out.put_u8(self.kind.code());
        out.put_u8(self.wire.code());
        out.put_u16_le(match sum {
            PayloadSum::Off => 0,
            PayloadSum::On => FLAG_SUM,
        });
        // The limits that check_shape enforces, and limits.rs relates, keep these counts within their fields.
        out.put_u16_le(self.segments.len() as u16);
        out.put_u32_le(self.step.0);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(self.width);
        out.put_u32_le(self.rows() as u32);
        out.put_u32_le(payload_bytes as u32);
        let StepTimes { compute_us, slowest_us, queued_us } = self.times;
        [0, compute_us, slowest_us, queued_us, 0].into_iter().for_each(|word| out.put_u32_le(word));
        for segment in &self.segments {
            check_segment(segment, self.kind)?;
            out.put_u64_le(segment.session.0);
            out.put_u32_le(segment.position);
            out.put_u32_le(segment.rows);
            out.put_u32_le(segment.flags.word(segment.wants));
            out.put_u32_le(0);
            out.put_u64_le(segment.trail.0);
        }
        self.ids.iter().for_each(|id| out.put_u32_le(*id));
        let crc = checksum(&head);
        head[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(head.freeze())
    }
}

/// The sum that follows a payload: the first 8 bytes of its BLAKE3.
pub(crate) fn payload_sum(payload: &[u8]) -> u64 {
    (&blake3::hash(payload).as_bytes()[..SUM_BYTES]).get_u64_le()
}

/// Bytes of the payload of such a frame, if there may be such a frame.
fn check_shape(kind: FrameKind, wire: WireType, segments: usize, rows: usize, width: u32) -> Result<usize, FrameError> {
    let (least, rows_most, width_least, width_most) = match kind {
        FrameKind::Hidden => (1, FRAME_ROWS, 1, FRAME_WIDTH),
        FrameKind::Tokens => (1, FRAME_ROWS, 0, FRAME_WIDTH),
        FrameKind::Sampled => (1, FRAME_ROWS, 0, CANDIDATES),
        FrameKind::End => (0, 0, 0, 0),
    };
    let segments_most = if least == 0 { 0 } else { FRAME_SEGMENTS };
    within("segments", segments as u64, least, segments_most)?;
    within("rows", rows as u64, 0, rows_most)?;
    within("width", width.into(), width_least, width_most)?;
    let row_bytes = match kind {
        FrameKind::Hidden => wire.row_bytes(width).ok_or(FrameError::Blocks { width })?,
        FrameKind::Sampled => sampled::row_bytes(width),
        FrameKind::Tokens | FrameKind::End => 0,
    };
    let payload_bytes = row_bytes * rows as u64;
    within("bytes of the payload", payload_bytes, 0, FRAME_PAYLOAD_BYTES)?;
    Ok(payload_bytes as usize)
}

fn parse_segment(bytes: &mut &[u8], kind: FrameKind) -> Result<Segment, FrameError> {
    let session = SessionId(bytes.get_u64_le());
    let (position, rows, word) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
    equal("reserved field of a segment", 0, bytes.get_u32_le().into())?;
    let trail = Trail(bytes.get_u64_le());
    let unknown = FrameError::Unknown { what: "segment flags", code: word };
    let (flags, wants) = SegmentFlags::from_word(word).ok_or(unknown)?;
    let segment = Segment { session, position, rows, wants, flags, trail };
    check_segment(&segment, kind)?;
    Ok(segment)
}

fn check_segment(segment: &Segment, kind: FrameKind) -> Result<(), FrameError> {
    let least = match kind {
        FrameKind::Sampled | FrameKind::End => 0,
        FrameKind::Hidden | FrameKind::Tokens => 1,
    };
    within("rows of a segment", segment.rows.into(), least, FRAME_ROWS)?;
    within("end of a segment", u64::from(segment.position) + u64::from(segment.rows), 0, u32::MAX as usize)
}

const fn head_bytes(segments: usize, rows: usize) -> usize {
    (FIXED_HEAD_BYTES + segments * SEGMENT_BYTES + rows * 4).next_multiple_of(HEAD_ALIGNMENT)
}

fn checksum(head: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&head[..CRC_OFFSET]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &head[CRC_OFFSET + 4..])
}

fn equal(what: &'static str, stated: u64, computed: u64) -> Result<(), FrameError> {
    if stated == computed { Ok(()) } else { Err(FrameError::Mismatch { what, stated, computed }) }
}

fn within(what: &'static str, found: u64, least: u64, most: usize) -> Result<(), FrameError> {
    let most = most as u64;
    if (least..=most).contains(&found) { Ok(()) } else { Err(FrameError::Limit { what, found, least, most }) }
}

#[cfg(test)]
mod tests;
