//! Sums of rows, in a `Sampled` frame behind its rows: one for each segment that wants one, in the order of the segments, all
//! of them as wide.
//!
//! A value is added as an integer, in units of 2⁻³². Sums of integers are the same in any order, so what pooling is made of
//! does not depend on how a prompt was cut into steps.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    frame::{Frame, FrameError, Segment},
    limits::FRAME_WIDTH,
    sampled,
};

/// Bytes of one value of a sum.
const VALUE_BYTES: usize = size_of::<i64>();

/// The sum of some rows after the final norm, value by value, in units of 2⁻³².
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RowSum(pub Vec<i64>);

impl RowSum {
    /// The bytes of sums.
    pub fn encode_all(sums: &[Self]) -> Bytes {
        let values = sums.iter().flat_map(|Self(values)| values);
        let mut out = BytesMut::with_capacity(values.clone().count() * VALUE_BYTES);
        values.for_each(|value| out.put_i64_le(*value));
        out.freeze()
    }

    /// The sums of a `Sampled` frame, in the order of the segments that want one.
    pub fn decode_all(frame: &Frame) -> Result<Vec<Self>, FrameError> {
        let (_rows, sums) = sampled::parts(frame)?;
        match width(sums.len(), &frame.segments)? {
            0 => Ok(Vec::new()),
            width => Ok(sums.chunks_exact(width * VALUE_BYTES).map(read).collect()),
        }
    }
}

/// Values of each sum, where so many bytes are the sums of these segments; 0 where there are none.
pub(crate) fn width(bytes: usize, segments: &[Segment]) -> Result<usize, FrameError> {
    let wanted = segments.iter().filter(|segment| segment.wants.is_sum()).count();
    let width = bytes.checked_div(wanted * VALUE_BYTES).unwrap_or(0);
    let (stated, computed) = (bytes as u64, (wanted * width * VALUE_BYTES) as u64);
    if stated != computed {
        return Err(FrameError::Mismatch { what: "bytes of sums", stated, computed });
    }
    if width > FRAME_WIDTH {
        return Err(FrameError::Limit {
            what: "width of sums",
            found: width as u64,
            least: 0,
            most: FRAME_WIDTH as u64,
        });
    }
    Ok(width)
}

fn read(mut bytes: &[u8]) -> RowSum {
    RowSum((0..bytes.len() / VALUE_BYTES).map(|_| bytes.get_i64_le()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FrameHead, FrameKind, PlanEpoch, Sampled, SessionId, StepId, Trail, Wants};

    fn segment(session: u64, rows: u32, wants: Wants) -> Segment {
        Segment { session: SessionId(session), position: 9, rows, wants, trail: Trail(session) }
    }

    #[test]
    fn sums_follow_the_rows() {
        let rows = [Sampled { token: 7, ..Sampled::default() }];
        let sums = [RowSum(vec![1, -2, i64::MAX]), RowSum(vec![0, 4, i64::MIN])];
        let (width, sampled) = Sampled::encode_rows(&rows);
        let payload = Bytes::from([&sampled[..], &RowSum::encode_all(&sums)].concat());
        let segments = vec![segment(1, 0, Wants::Sum), segment(2, 1, Wants::Last), segment(3, 0, Wants::SumLast)];
        let (kind, ids) = (FrameKind::Sampled, vec![5]);
        let frame = Frame { kind, width, ids, segments, payload, ..Frame::end(PlanEpoch(1), StepId(1)) };
        let head = FrameHead::parse(&frame.head_bytes().unwrap()).unwrap();
        let frame = head.into_frame(frame.payload).unwrap();
        assert_eq!(
            (Sampled::decode_rows(&frame).unwrap(), RowSum::decode_all(&frame).unwrap()),
            (rows.into(), sums.into())
        );
        let odd = Frame { payload: frame.payload.slice(..frame.payload.len() - 8), ..frame.clone() };
        let (stated, computed) = (40, 32);
        let wrong = FrameError::Mismatch { what: "bytes of sums", stated, computed };
        assert_eq!((odd.head_bytes(), RowSum::decode_all(&odd)), (Err(wrong.clone()), Err(wrong)));
        let mut unasked = frame;
        unasked.segments.iter_mut().for_each(|segment| segment.wants = Wants::None);
        assert!(matches!(unasked.head_bytes(), Err(FrameError::Mismatch { what: "bytes of sums", .. })));
    }

    #[test]
    fn an_unsummed_frame_has_no_sums() {
        let frame = Frame { kind: FrameKind::Sampled, ..Frame::end(PlanEpoch(1), StepId(1)) };
        assert_eq!(RowSum::decode_all(&frame), Ok(Vec::new()));
        let hidden = Frame { kind: FrameKind::Hidden, ..frame };
        assert_eq!(RowSum::decode_all(&hidden), Err(FrameError::NotSampled { kind: FrameKind::Hidden }));
    }
}
