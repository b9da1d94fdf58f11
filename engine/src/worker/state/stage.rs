//! The current assignment: how far its shard and its links are, and its counters.

use std::sync::Arc;

use qmesh_net::{Message, PlanEpoch, Route, ShardPhase, ShardStatus, StageReport, StepId};

use crate::worker::{assignment::Assignment, event::LinkId};

/// How far the current assignment is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    Unloading,
    Fetching,
    Loading,
    Ready,
    Failed,
}

/// Whether tensors that do not load may be fetched again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refetch {
    Allowed,
    Done,
}

/// How far the own link is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outgoing {
    None,
    Standing,
    Broken,
}

/// The current assignment.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) assignment: Arc<Assignment>,
    pub(super) phase: Phase,
    pub(super) refetch: Refetch,
    pub(super) fetched_bytes: u64,
    pub(super) route: Option<Route>,
    pub(super) incoming: Option<LinkId>,
    pub(super) outgoing: Outgoing,
    /// Frames on their way into the send buffer.
    pub(super) sending: usize,
    pub(super) linked_told: bool,
    pub(super) last_step: Option<StepId>,
    pub(super) report: StageReport,
    pub(super) reported_steps: u64,
}

impl Stage {
    pub(super) fn new(assignment: Arc<Assignment>, phase: Phase) -> Self {
        let report = StageReport { epoch: assignment.epoch, stage: assignment.stage, ..StageReport::default() };
        Self {
            assignment,
            phase,
            refetch: Refetch::Allowed,
            fetched_bytes: 0,
            route: None,
            incoming: None,
            outgoing: Outgoing::None,
            sending: 0,
            linked_told: false,
            last_step: None,
            report,
            reported_steps: 0,
        }
    }

    pub(super) fn status(&self, phase: ShardPhase, text: String) -> Message {
        Message::ShardStatus(ShardStatus { text, ..self.bare_status(phase) })
    }

    pub(super) fn bare_status(&self, phase: ShardPhase) -> ShardStatus {
        let bytes = self.assignment.weight_bytes();
        let epoch = self.assignment.epoch;
        let done = if phase == ShardPhase::Ready { bytes } else { 0 };
        ShardStatus { epoch, phase, bytes_done: done, bytes_total: bytes, text: String::new(), peak_memory_bytes: 0 }
    }
}

pub(super) fn failed(epoch: PlanEpoch, text: String) -> Message {
    let phase = ShardPhase::Failed;
    Message::ShardStatus(ShardStatus { epoch, phase, bytes_done: 0, bytes_total: 0, text, peak_memory_bytes: 0 })
}
