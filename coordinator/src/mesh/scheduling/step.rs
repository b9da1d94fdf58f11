//! One step: the rows that travel through a pipeline together.

use std::time::Instant;

use bytes::Bytes;
use qmesh_net::{
    Frame, FrameError, FrameKind, Mask, MaskedRows, PlanEpoch, RowSum, Sampled, Sections, Segment, SessionId, StepId,
    StepTimes,
};

use super::{action::Action, sequence::Rows};

/// The pipeline that steps run through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipeline {
    pub(super) epoch: PlanEpoch,
    pub(super) stages: usize,
}

/// A step in flight.
#[derive(Debug)]
pub(super) struct StepUnderWay {
    pub(super) segments: Vec<Segment>,
    /// Whether tokens come of it, and not only more of a prompt.
    pub(super) decodes: bool,
    /// Masks that were sent for its rows.
    pub(super) masks: usize,
    pub(super) sent: Instant,
}

impl StepUnderWay {
    pub(super) fn rows(&self) -> usize {
        self.segments.iter().map(|s| s.rows as usize).sum()
    }

    /// Takes a session out; `false` where nothing is left.
    pub(super) fn forget(&mut self, session: SessionId) -> bool {
        self.segments.retain(|s| s.session != session);
        !self.segments.is_empty()
    }
}

/// A step that is being filled.
#[derive(Debug)]
pub(super) struct Filled {
    frame: Frame,
    masked: MaskedRows,
    masks: Vec<Mask>,
}

impl Filled {
    /// One without rows.
    pub(super) fn new(pipeline: Pipeline, step: StepId) -> Self {
        Self { frame: empty_frame(pipeline, step), masked: MaskedRows::default(), masks: Vec::new() }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.frame.segments
    }

    pub(super) fn rows(&self) -> usize {
        self.frame.ids.len()
    }

    /// Segments whose rows are added up.
    pub(super) fn sums(&self) -> usize {
        self.frame.segments.iter().filter(|segment| segment.wants.is_sum()).count()
    }

    pub(super) fn masks(&self) -> usize {
        self.masks.len()
    }

    pub(super) fn add(&mut self, rows: Rows) {
        let Rows { segment, ids, masks } = rows;
        self.frame.segments.push(segment);
        self.frame.ids.extend(ids);
        let Frame { epoch, step, .. } = self.frame;
        let (end, last) = (self.frame.ids.len(), segment.position + segment.rows);
        for (back, tokens) in (1..=masks.len()).rev().zip(masks) {
            self.masked.insert(end - back);
            let position = last - u32::try_from(back).unwrap_or(last);
            self.masks.push(Mask { epoch, step, session: segment.session, position, tokens });
        }
    }

    /// The masks go first: they are there when the step's rows have come through all stages.
    pub(super) fn into_actions(mut self) -> impl Iterator<Item = Action> {
        self.masked.put(&mut self.frame.sections);
        self.masks.into_iter().map(Action::Mask).chain([Action::Frame(self.frame)])
    }
}

/// What the last stage has made of a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Of each row that was to be sampled after, segment after segment.
    pub(crate) rows: Vec<Sampled>,
    /// Of each segment whose rows were to be added up.
    pub(crate) sums: Vec<RowSum>,
}

impl Answer {
    /// What a frame of samples has.
    ///
    /// # Errors
    /// It is no such frame, or contradicts itself.
    pub(crate) fn decode(frame: &Frame) -> Result<Self, FrameError> {
        Ok(Self { rows: Sampled::decode_rows(frame)?, sums: RowSum::decode_all(frame)? })
    }
}

/// Why a frame of samples answers no step that is under way.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadAnswer {
    /// A token that does not exist.
    #[error("it sampled token {token}, which is not in the vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Ids that there are.
        vocab: usize,
    },
    /// No such step was sent.
    #[error("it answered step {0}, which was never sent")]
    Step(StepId),
    /// Sums of rows that are not the model's.
    #[error("it has sums of {width} values, the model's rows have {hidden}")]
    SumWidth {
        /// Values of a sum; 0 where there is none.
        width: usize,
        /// Values of a row.
        hidden: usize,
    },
    /// The step had no such rows.
    #[error("it sampled rows of session {0} that were not sent")]
    Rows(SessionId),
}

/// A step's frame before it has any rows.
pub(super) fn empty_frame(pipeline: Pipeline, step: StepId) -> Frame {
    Frame {
        kind: FrameKind::Tokens,
        epoch: pipeline.epoch,
        step,
        width: 0,
        times: StepTimes::default(),
        segments: Vec::new(),
        ids: Vec::new(),
        payload: Bytes::new(),
        sections: Sections::default(),
    }
}
