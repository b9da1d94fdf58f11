//! One step: the rows that travel through a pipeline together.

use std::time::Instant;

use bytes::Bytes;
use qmesh_net::{Frame, FrameKind, PlanEpoch, Sections, Segment, SessionId, StepId, StepTimes};

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
