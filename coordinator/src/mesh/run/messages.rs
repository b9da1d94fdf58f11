//! What workers say, and whether they may say it: each only for the stage that it holds.

use std::time::Instant;

use qmesh_net::{Fault, FaultCode, Frame, FrameKind, Message, PlanEpoch, Sampled, SessionId, ShardStatus};

use super::MeshTask;
use crate::mesh::{
    probe::Probe,
    roster::{Blame, Misconduct, WorkerId},
};

impl MeshTask {
    pub(super) fn control(&mut self, now: Instant, worker: WorkerId, message: Message) -> Result<(), Misconduct> {
        match message {
            Message::ShardStatus(status) => self.shard_status(now, worker, status)?,
            Message::Linked { epoch } => {
                let actions = self.roster.linked(worker, epoch)?;
                self.roster_actions(now, actions);
            }
            Message::Opened { epoch, session } => {
                if self.answers(worker, epoch, session)? {
                    self.opened(now, epoch, session);
                }
            }
            Message::Refused { epoch, session, text } => {
                if self.answers(worker, epoch, session)? {
                    self.session_fault(now, worker, epoch, session, &text);
                }
            }
            Message::Fault(fault) => self.fault(now, worker, fault)?,
            Message::StageReport(report) => self.roster.report(worker, report),
            Message::Drain | Message::Bye { .. } => {
                let actions = self.roster.left(now, worker, "it has left");
                self.roster_actions(now, actions);
            }
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Reject { .. }
            | Message::Load(_)
            | Message::Route(_)
            | Message::Open(_)
            | Message::Close { .. }
            | Message::Keep { .. }
            | Message::Unload { .. } => return Err(Misconduct::Unasked("a message that only a coordinator sends")),
        }
        Ok(())
    }

    fn shard_status(&mut self, now: Instant, worker: WorkerId, status: ShardStatus) -> Result<(), Misconduct> {
        let actions = self.roster.shard_status(now, worker, status)?;
        self.roster_actions(now, actions);
        Ok(())
    }

    /// Whether a stage's answer on a session counts; `false` where it is late.
    fn answers(&mut self, worker: WorkerId, epoch: PlanEpoch, session: SessionId) -> Result<bool, Misconduct> {
        let Some(stage) = self.roster.stage_in(worker, epoch)? else { return Ok(false) };
        if self.openings.answered(epoch, session, stage) {
            Ok(true)
        } else {
            Err(Misconduct::Unasked("that a session may open"))
        }
    }

    fn opened(&mut self, now: Instant, epoch: PlanEpoch, session: SessionId) {
        match self.probe.as_mut().filter(|probe| probe.epoch() == epoch && Probe::owns(session)) {
            Some(probe) => {
                let outcome = probe.opened(session);
                self.probe_outcomes(now, outcome.into_iter().collect());
            }
            None => self.scheduler.opened(epoch, session),
        }
    }

    /// What a worker says of a stage that it has not changes nothing.
    fn fault(&mut self, now: Instant, worker: WorkerId, fault: Fault) -> Result<(), Misconduct> {
        let Fault { epoch, session, code, text } = fault;
        if self.roster.stage_in(worker, epoch)?.is_none() {
            return Ok(());
        }
        if let Some(session) = session {
            self.session_fault(now, worker, epoch, session, &text);
            return Ok(());
        }
        tracing::warn!("fault on {}: {text}", self.roster.name_of(worker));
        let actions = match code {
            FaultCode::Link => self.roster.link_broken(now, worker, epoch, &text),
            FaultCode::Gap { .. }
            | FaultCode::UnknownSession
            | FaultCode::Capacity
            | FaultCode::Memory
            | FaultCode::Frame
            | FaultCode::Numerics
            | FaultCode::Ids
            | FaultCode::Internal => self.roster.broken(now, epoch, &text, Blame::Worker(worker)),
        };
        self.roster_actions(now, actions);
        Ok(())
    }

    fn session_fault(&mut self, now: Instant, worker: WorkerId, epoch: PlanEpoch, session: SessionId, text: &str) {
        let text = format!("{}: {text}", self.roster.name_of(worker));
        tracing::warn!("fault on {text}");
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.epoch() == epoch && Probe::owns(session)) {
            let outcomes = probe.failed(session, &text);
            return self.probe_outcomes(now, outcomes);
        }
        let actions = self.scheduler.failed(epoch, session, &text);
        self.scheduler_actions(now, actions);
    }

    pub(super) fn frame(&mut self, now: Instant, worker: WorkerId, frame: &Frame) -> Result<(), String> {
        if !self.roster.may_sample(worker, frame.epoch).map_err(|e| e.to_string())? {
            return Ok(());
        }
        if frame.kind != FrameKind::Sampled {
            return Err("it sent something else than samples".to_owned());
        }
        let rows = Sampled::decode_rows(frame).map_err(|e| e.to_string())?;
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.epoch() == frame.epoch) {
            let outcomes = probe.sampled(frame.step);
            self.probe_outcomes(now, outcomes);
            return Ok(());
        }
        self.scheduler.check_answer(frame, &rows)?;
        let actions = self.scheduler.stepped(now, frame, rows);
        self.scheduler_actions(now, actions);
        Ok(())
    }
}
