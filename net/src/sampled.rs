//! The rows of a `Sampled` frame: a token and what is known about it, per sampled position. Sums may follow them (`sum.rs`).

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{Frame, FrameError, FrameKind};

/// Bytes of a row without its candidates.
const ROW_BYTES: u32 = 20;
/// Bytes of a candidate.
const CANDIDATE_BYTES: u32 = 12;
/// The id of a candidate's place that is not used.
const UNUSED: u32 = u32::MAX;

/// What the last stage says about one position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The token chosen to follow.
    pub token: u32,
    /// Its log-probability among what may follow, before any filter.
    pub logprob: f32,
    /// Log-probability of the id that follows in the segment; NaN where none does.
    pub target_logprob: f32,
    /// Hash over the bits of all logits; 0 unless the session asked for it.
    pub digest: u64,
    /// The most likely tokens, best first.
    pub top: Vec<Candidate>,
}

/// One of the most likely tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
    /// Its log-probability.
    pub logprob: f32,
}

impl Sampled {
    /// The width (candidates per row) and the payload of a frame with these rows.
    pub fn encode_rows(rows: &[Self]) -> (u32, Bytes) {
        let width = rows.iter().map(|row| row.top.len()).max().unwrap_or(0);
        let mut out = BytesMut::with_capacity(rows.len() * (ROW_BYTES as usize + width * CANDIDATE_BYTES as usize));
        for row in rows {
            out.put_u32_le(row.token);
            out.put_f32_le(row.logprob);
            out.put_f32_le(row.target_logprob);
            out.put_u64_le(row.digest);
            let unused = Candidate { id: UNUSED, logit: 0.0, logprob: 0.0 };
            for candidate in row.top.iter().copied().chain(std::iter::repeat(unused)).take(width) {
                out.put_u32_le(candidate.id);
                out.put_f32_le(candidate.logit);
                out.put_f32_le(candidate.logprob);
            }
        }
        (u32::try_from(width).unwrap_or(u32::MAX), out.freeze())
    }

    /// The rows of a `Sampled` frame, in the order of its segments.
    pub fn decode_rows(frame: &Frame) -> Result<Vec<Self>, FrameError> {
        let (mut bytes, _sums) = parts(frame)?;
        Ok((0..frame.rows()).map(|_| read_row(&mut bytes, frame.width)).collect())
    }
}

/// The bytes of the rows of a `Sampled` frame, and those behind them.
pub(crate) fn parts(frame: &Frame) -> Result<(&[u8], &[u8]), FrameError> {
    match frame.kind {
        FrameKind::Sampled => {}
        kind @ (FrameKind::Hidden | FrameKind::Tokens | FrameKind::End) => return Err(FrameError::NotSampled { kind }),
    }
    let (stated, computed) = (frame.rows() * row_bytes(frame.width), frame.payload.len());
    let short = FrameError::Mismatch { what: "bytes of the payload", stated: stated as u64, computed: computed as u64 };
    frame.payload.split_at_checked(stated).ok_or(short)
}

/// Bytes of a row with `width` candidates.
pub(crate) const fn row_bytes(width: u32) -> usize {
    ROW_BYTES as usize + CANDIDATE_BYTES as usize * width as usize
}

fn read_row(bytes: &mut &[u8], width: u32) -> Sampled {
    let (token, logprob, target_logprob) = (bytes.get_u32_le(), bytes.get_f32_le(), bytes.get_f32_le());
    let digest = bytes.get_u64_le();
    let mut candidate = || Candidate { id: bytes.get_u32_le(), logit: bytes.get_f32_le(), logprob: bytes.get_f32_le() };
    let top = (0..width).map(|_| candidate()).filter(|candidate| candidate.id != UNUSED).collect();
    Sampled { token, logprob, target_logprob, digest, top }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PlanEpoch, StepId};

    #[test]
    fn rows_of_unequal_candidates_survive() {
        let candidate = |id| Candidate { id, logit: id as f32, logprob: -0.5 };
        let rows = [
            Sampled { token: 7, logprob: -1.0, target_logprob: -2.0, digest: u64::MAX, top: vec![candidate(7)] },
            Sampled { token: 8, top: vec![candidate(8), candidate(0)], ..Sampled::default() },
        ];
        let (width, payload) = Sampled::encode_rows(&rows);
        assert_eq!((width, payload.len()), (2, 2 * (20 + 2 * 12)));
        let frame =
            Frame { kind: FrameKind::Sampled, width, ids: vec![1, 2], payload, ..Frame::end(PlanEpoch(1), StepId(1)) };
        assert_eq!(Sampled::decode_rows(&frame).unwrap(), rows);
        let short = Frame { payload: frame.payload.slice(1..), ..frame.clone() };
        assert!(matches!(Sampled::decode_rows(&short), Err(FrameError::Mismatch { .. })));
        let hidden = Frame { kind: FrameKind::Hidden, ..frame };
        assert_eq!(Sampled::decode_rows(&hidden), Err(FrameError::NotSampled { kind: FrameKind::Hidden }));
    }
}
