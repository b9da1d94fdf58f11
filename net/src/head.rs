//! The bytes before a frame's payload: a fixed part, the segments, the token ids, the sections, and zeros up to a
//! multiple of 32.
//!
//! Everything is checked before anything is allocated; little-endian throughout.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 2 | magic `0x514D` |
//! | 2 | 1 | kind: 1 hidden, 2 tokens, 4 sampled, 5 end |
//! | 3 | 1 | wire type: 0, rows of f32 |
//! | 4 | 2 | flags: none is known; the lower 8 must be, the upper 8 may be ignored |
//! | 6 | 2 | segments |
//! | 8 | 4 | step |
//! | 12 | 4 | plan epoch |
//! | 16 | 4 | width |
//! | 20 | 4 | rows over all segments |
//! | 24 | 4 | bytes of the payload |
//! | 28 | 4 | CRC-32C of all bytes before the payload, these four as zero |
//! | 32 | 12 | step times, microseconds: compute u32, slowest stage's compute u32, queued u32 |
//! | 44 | 2 | bytes of the sections |
//! | 46 | 2 | zero |
//! | 48 | 32 each | segment: session u64, position u32, rows u32, wants u16, flags u16, zero u32, trail u64 |
//! | … | 4 each | token id of each row |
//! | … | | sections, as in `section.rs` |
//!
//! A segment wants 0 nothing, 1 a sample after its last row, 2 one after every row, 3 the sum of its rows, 4 its last row as
//! a sum; all of its flags may be ignored. The payload of a sampled frame ends in the sums, as in `sum.rs`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    frame::{Frame, FrameError, FrameKind, Segment, StepTimes, Wants},
    ids::{PlanEpoch, SessionId, StepId},
    limits::{
        CANDIDATES, FIXED_HEAD_BYTES, FRAME_PAYLOAD_BYTES, FRAME_ROWS, FRAME_SECTIONS_BYTES, FRAME_SEGMENTS,
        FRAME_WIDTH, HEAD_ALIGNMENT, SEGMENT_BYTES, VALUE_BYTES,
    },
    mask::MaskedRows,
    sampled,
    section::Sections,
    sum,
    trail::Trail,
};

const MAGIC: u16 = 0x514d;
const CRC_OFFSET: usize = 28;
/// Rows of f32, the only wire type there is.
const WIRE_F32: u8 = 0;
/// Flags of a frame that a receiver must know; the others may be ignored.
const CRITICAL_FLAGS: u16 = 0x00ff;
/// The tags of a frame's sections that this version knows.
const KNOWN_TAGS: [u16; 1] = [MaskedRows::TAG];

/// A head whose every field was checked; the payload is still to come.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FrameHead {
    fixed: FixedHead,
    segments: Vec<Segment>,
    ids: Vec<u32>,
    sections: Sections,
}

/// The fixed part, which says how many bytes follow. All its fields are within limits and agree.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FixedHead {
    kind: FrameKind,
    segments: usize,
    step: StepId,
    epoch: PlanEpoch,
    width: u32,
    rows: usize,
    payload_bytes: usize,
    times: StepTimes,
    sections_bytes: usize,
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
        let (mut ids, rest) = rest.split_at(fixed.rows * 4);
        let (sections, padding) = rest.split_at(fixed.sections_bytes);
        equal("padding of the head", 0, padding.iter().map(|byte| u64::from(*byte)).sum())?;
        let segments = (0..fixed.segments).map(|_| parse_segment(&mut segments, fixed.kind));
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        equal("rows", fixed.rows as u64, segments.iter().map(|segment| u64::from(segment.rows)).sum())?;
        let ids = (0..fixed.rows).map(|_| ids.get_u32_le()).collect();
        let sections = Sections::parse(sections, FRAME_SECTIONS_BYTES)?;
        sections.understood(&KNOWN_TAGS)?;
        MaskedRows::check(&sections, fixed.rows)?;
        sum::width(fixed.sum_bytes(), &segments)?;
        Ok(Self { fixed, segments, ids, sections })
    }

    /// Bytes of the payload that follows.
    pub fn payload_bytes(&self) -> usize {
        self.fixed.payload_bytes
    }

    /// Joins the head with the bytes after it, which are the payload.
    pub(crate) fn into_frame(self, payload: Bytes) -> Result<Frame, FrameError> {
        let Self { fixed, segments, ids, sections } = self;
        let FixedHead { kind, epoch, step, width, times, .. } = fixed;
        equal("bytes after the head", payload.len() as u64, fixed.payload_bytes as u64)?;
        Ok(Frame { kind, epoch, step, width, times, segments, ids, payload, sections })
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
        if flags & CRITICAL_FLAGS != 0 {
            return Err(FrameError::Unknown { what: "frame flags", code: flags.into() });
        }
        let segments = usize::from(bytes.get_u16_le());
        let (step, epoch) = (StepId(bytes.get_u32_le()), PlanEpoch(bytes.get_u32_le()));
        let (width, rows, stated) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
        let kind = FrameKind::from_code(kind).ok_or(unknown("frame kind", kind))?;
        if wire != WIRE_F32 {
            return Err(unknown("wire type", wire));
        }
        let payload_bytes = stated as usize;
        check_shape(kind, segments, rows as usize, width, payload_bytes)?;
        let crc = bytes.get_u32_le();
        let (compute_us, slowest_us, queued_us) = (bytes.get_u32_le(), bytes.get_u32_le(), bytes.get_u32_le());
        let times = StepTimes { compute_us, slowest_us, queued_us };
        let (sections_bytes, reserved) = (usize::from(bytes.get_u16_le()), bytes.get_u16_le());
        within("bytes of the sections", sections_bytes as u64, 0, FRAME_SECTIONS_BYTES)?;
        equal("reserved field of the head", 0, reserved.into())?;
        let rows = rows as usize;
        Ok(Self { kind, segments, step, epoch, width, rows, payload_bytes, times, sections_bytes, crc })
    }

    pub(crate) fn kind(&self) -> FrameKind {
        self.kind
    }

    /// Bytes of the payload behind its rows.
    fn sum_bytes(&self) -> usize {
        let Self { kind, rows, width, payload_bytes, .. } = *self;
        payload_bytes.saturating_sub(rows * row_bytes(kind, width))
    }

    /// Bytes before the payload.
    pub(crate) fn head_bytes(&self) -> usize {
        head_bytes(self.segments, self.rows, self.sections_bytes)
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.head_bytes() + self.payload_bytes
    }
}

impl Frame {
    /// How many bytes the frame has on the wire, head and payload together.
    pub fn wire_bytes(&self) -> usize {
        head_bytes(self.segments.len(), self.rows(), self.sections.wire_bytes()) + self.payload.len()
    }

    /// All bytes before the payload, or what is wrong with the frame.
    pub fn head_bytes(&self) -> Result<Bytes, FrameError> {
        let payload_bytes = self.payload.len();
        check_shape(self.kind, self.segments.len(), self.rows(), self.width, payload_bytes)?;
        sum::width(payload_bytes - self.rows() * row_bytes(self.kind, self.width), &self.segments)?;
        equal("rows", self.rows() as u64, self.segments.iter().map(|segment| u64::from(segment.rows)).sum())?;
        self.sections.check(FRAME_SECTIONS_BYTES)?;
        MaskedRows::check(&self.sections, self.rows())?;
        let sections_bytes = self.sections.wire_bytes();
        let mut head = BytesMut::zeroed(head_bytes(self.segments.len(), self.rows(), sections_bytes));
        let mut out = &mut head[..];
        out.put_u16_le(MAGIC);
        out.put_u8(self.kind.code());
        out.put_u8(WIRE_F32);
        out.put_u16_le(0);
        // The limits that check_shape enforces, and limits.rs relates, keep these counts within their fields.
        out.put_u16_le(self.segments.len() as u16);
        out.put_u32_le(self.step.0);
        out.put_u32_le(self.epoch.0);
        out.put_u32_le(self.width);
        out.put_u32_le(self.rows() as u32);
        out.put_u32_le(payload_bytes as u32);
        let StepTimes { compute_us, slowest_us, queued_us } = self.times;
        [0, compute_us, slowest_us, queued_us].into_iter().for_each(|word| out.put_u32_le(word));
        out.put_u16_le(sections_bytes as u16);
        out.put_u16_le(0);
        for segment in &self.segments {
            check_segment(segment, self.kind)?;
            out.put_u64_le(segment.session.0);
            out.put_u32_le(segment.position);
            out.put_u32_le(segment.rows);
            out.put_u16_le(segment.wants.code());
            out.put_u16_le(0);
            out.put_u32_le(0);
            out.put_u64_le(segment.trail.0);
        }
        self.ids.iter().for_each(|id| out.put_u32_le(*id));
        self.sections.write(&mut out);
        let crc = checksum(&head);
        head[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        Ok(head.freeze())
    }
}

/// Whether there may be such a frame.
fn check_shape(
    kind: FrameKind,
    segments: usize,
    rows: usize,
    width: u32,
    payload_bytes: usize,
) -> Result<(), FrameError> {
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
    let least = row_bytes(kind, width) as u64 * rows as u64;
    within("bytes of the payload", least, 0, FRAME_PAYLOAD_BYTES)?;
    if kind == FrameKind::Sampled {
        // Sums may follow.
        return within("bytes of the payload", payload_bytes as u64, least, FRAME_PAYLOAD_BYTES);
    }
    equal("bytes of the payload", payload_bytes as u64, least)
}

const fn row_bytes(kind: FrameKind, width: u32) -> usize {
    match kind {
        FrameKind::Hidden => VALUE_BYTES * width as usize,
        FrameKind::Sampled => sampled::row_bytes(width),
        FrameKind::Tokens | FrameKind::End => 0,
    }
}

fn parse_segment(bytes: &mut &[u8], kind: FrameKind) -> Result<Segment, FrameError> {
    let session = SessionId(bytes.get_u64_le());
    let (position, rows) = (bytes.get_u32_le(), bytes.get_u32_le());
    let (wants, _optional_flags) = (bytes.get_u16_le(), bytes.get_u16_le());
    equal("reserved field of a segment", 0, bytes.get_u32_le().into())?;
    let trail = Trail(bytes.get_u64_le());
    let unknown = FrameError::Unknown { what: "segment flags", code: wants.into() };
    let wants = Wants::from_code(wants).ok_or(unknown)?;
    let segment = Segment { session, position, rows, wants, trail };
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

const fn head_bytes(segments: usize, rows: usize, sections_bytes: usize) -> usize {
    (FIXED_HEAD_BYTES + segments * SEGMENT_BYTES + rows * 4 + sections_bytes).next_multiple_of(HEAD_ALIGNMENT)
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
