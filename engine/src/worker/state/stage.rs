//! One assignment of the worker: how far its shard and its links are, what waits for the compute thread, and its counters.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::bytes::ByteCount;
use qmesh_net::{
    Fault, FaultCode, LinkWay, Message, PlanEpoch, Route, Sections, ShardPhase, ShardStatus, StageReport, StepId,
};

use super::{event::Action, masks::EarlyMasks, recent::RecentTimes};
use crate::{
    backend::HeldTensors,
    worker::{
        assignment::Assignment,
        compute::Command,
        links::LinkId,
        tensors::{Holding, Origins, Scrutiny},
        turn::Turn,
    },
};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How far a shard is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Readiness {
    /// What others had must leave the memory first.
    Waiting,
    Fetching,
    Loading,
    Ready,
    Failed,
}

/// How far the link downstream is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Downlink {
    None,
    Standing,
    Broken,
}

/// A shard of one plan, and its place in the pipeline.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) turn: Turn,
    pub(super) assignment: Arc<Assignment>,
    pub(super) readiness: Readiness,
    /// Tensors that other shards had when this one was assigned.
    pub(super) taken_over: Arc<HeldTensors>,
    pub(super) scrutiny: Scrutiny,
    /// Whoever loads for this stage sees that it is gone.
    pub(super) wanted: Arc<()>,
    /// What it has loaded.
    pub(super) holding: Option<Holding>,
    /// What fetches that have ended brought, and from whom.
    pub(super) fetched: Origins,
    /// What the one that runs has brought so far.
    pub(super) coming: Origins,
    pub(super) route: Option<Route>,
    /// The link that frames come on.
    pub(super) uplink: Option<LinkId>,
    /// The link that frames leave on.
    pub(super) downlink: Downlink,
    /// How it came about.
    pub(super) link_way: Option<LinkWay>,
    /// Commands for the compute thread, in order.
    pub(super) queue: VecDeque<Command>,
    /// What came before the frames that it is for.
    pub(super) early_masks: EarlyMasks,
    /// Frames in the queue.
    pub(super) waiting: usize,
    /// Frames that the compute thread has.
    pub(super) computing: usize,
    /// Frames on their way into the send buffer.
    pub(super) sending: usize,
    pub(super) linked_told: bool,
    pub(super) last_step: Option<StepId>,
    /// When the last frame came.
    pub(super) last_frame: Option<Instant>,
    pub(super) report: StageReport,
    /// How long its last steps took.
    pub(super) recent: RecentTimes,
    reported_steps: u64,
    progress_told: Option<Instant>,
}

impl Stage {
    pub(super) fn new(turn: Turn, assignment: Arc<Assignment>, taken_over: HeldTensors) -> Self {
        let report = StageReport { epoch: assignment.epoch, stage: assignment.stage, ..StageReport::default() };
        Self {
            turn,
            assignment,
            readiness: Readiness::Waiting,
            taken_over: Arc::new(taken_over),
            scrutiny: Scrutiny::Lengths,
            wanted: Arc::default(),
            holding: None,
            fetched: Origins::default(),
            coming: Origins::default(),
            route: None,
            uplink: None,
            downlink: Downlink::None,
            link_way: None,
            queue: VecDeque::new(),
            early_masks: EarlyMasks::default(),
            waiting: 0,
            computing: 0,
            sending: 0,
            linked_told: false,
            last_step: None,
            last_frame: None,
            report,
            recent: RecentTimes::default(),
            reported_steps: 0,
            progress_told: None,
        }
    }

    pub(super) fn epoch(&self) -> PlanEpoch {
        self.assignment.epoch
    }

    /// Frames between `Frame` and `Sent`.
    pub(super) fn frames_held(&self) -> usize {
        self.waiting + self.computing + self.sending
    }

    /// Its bytes that no other shard had.
    pub(super) fn own_bytes(&self) -> u64 {
        let tensors = self.assignment.spec.tensors.iter();
        tensors.filter(|tensor| !self.taken_over.contains_key(&tensor.role)).map(|tensor| tensor.bytes).sum()
    }

    pub(super) fn status(&self, phase: ShardPhase, text: String) -> Message {
        let bytes = self.assignment.weight_bytes();
        let bytes_done = if phase == ShardPhase::Ready { bytes } else { 0 };
        Message::ShardStatus(ShardStatus {
            epoch: self.epoch(),
            phase,
            bytes_done,
            bytes_total: bytes,
            text,
            peak_memory_bytes: 0,
            sections: self.origin_section(),
        })
    }

    /// Progress to tell while it is fetched or loaded, if it is time.
    pub(super) fn progress(&mut self, now: Instant, during: Readiness, done: u64, total: u64) -> Option<Message> {
        let phase = match during {
            Readiness::Fetching => ShardPhase::Fetching,
            Readiness::Loading => ShardPhase::Loading,
            Readiness::Waiting | Readiness::Ready | Readiness::Failed => return None,
        };
        if self.readiness != during {
            return None;
        }
        let due = done >= total || self.progress_told.is_none_or(|told| now - told >= PROGRESS_INTERVAL);
        due.then(|| {
            self.progress_told = Some(now);
            Message::ShardStatus(ShardStatus {
                epoch: self.epoch(),
                phase,
                bytes_done: done,
                bytes_total: total,
                text: String::new(),
                peak_memory_bytes: 0,
                sections: self.origin_section(),
            })
        })
    }

    /// Whether its tensors are still to come.
    pub(super) fn is_fetching(&self) -> bool {
        match self.readiness {
            Readiness::Waiting | Readiness::Fetching => true,
            Readiness::Loading | Readiness::Ready | Readiness::Failed => false,
        }
    }

    /// What people hear when it is loaded.
    pub(super) fn loaded_line(&self, title: &str, took: Duration) -> String {
        let (fetched, took) = (ByteCount(self.fetched.bytes()), took.as_secs_f64());
        match (self.own_bytes(), self.fetched.bytes()) {
            (0, _) => format!("{title}: still loaded"),
            (_, 0) => format!("{title}: nothing to fetch, loaded in {took:.1} s"),
            _ if self.fetched.peers.is_empty() => format!("{title}: fetched {fetched}, loaded in {took:.1} s"),
            _ => format!("{title}: fetched {fetched}: {}, loaded in {took:.1} s", self.fetched),
        }
    }

    /// Where its tensors came from so far.
    fn origin_section(&self) -> Sections {
        let (mut origins, mut sections) = (self.fetched.clone(), Sections::default());
        origins.add(&self.coming);
        // Two numbers are never too long for a section.
        let _ = origins.to_wire().put(&mut sections);
        sections
    }

    /// A fault of the whole stage.
    pub(super) fn fault(&self, code: FaultCode, text: String) -> Action {
        Action::Tell(Message::Fault(Fault { epoch: self.epoch(), session: None, code, text }))
    }

    /// Its counters, if they are new.
    pub(super) fn news(&mut self) -> Option<Message> {
        (self.report.steps > self.reported_steps).then(|| {
            self.reported_steps = self.report.steps;
            let mut report = self.report.clone();
            if let Some(recent) = self.recent.summary() {
                // Three numbers are never too long for a section.
                let _ = recent.put(&mut report.sections);
            }
            Message::StageReport(report)
        })
    }

    /// The shard is gone, and what waited for it with it.
    pub(super) fn lose_shard(&mut self) {
        self.readiness = Readiness::Failed;
        self.queue.clear();
        self.early_masks = EarlyMasks::default();
        (self.waiting, self.computing) = (0, 0);
    }
}

pub(super) fn failed(epoch: PlanEpoch, text: String) -> Message {
    let phase = ShardPhase::Failed;
    let sections = Sections::default();
    Message::ShardStatus(ShardStatus {
        epoch,
        phase,
        bytes_done: 0,
        bytes_total: 0,
        text,
        peak_memory_bytes: 0,
        sections,
    })
}
