//! What workers say, and whether they may say it: each only for the stage that it holds.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use qmesh_net::{
    AttentionTime, DiskRate, Fault, FaultCode, Frame, FrameError, FrameKind, LinkWay, Message, OwnAddresses, PlanEpoch,
    Sections, SessionId, ShardStatus, StageReport, WeightOrigin,
};

use super::{Action, Conductor};
use crate::mesh::{
    events::MeshEvent,
    formation::{Blame, Misconduct, WorkerId},
    scheduling::{Answer, BadAnswer},
};

/// Why a worker is hung up on.
#[derive(Debug, thiserror::Error)]
enum Offence {
    #[error(transparent)]
    Misconduct(#[from] Misconduct),
    #[error("it sent something else than samples")]
    NotSamples,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Answer(#[from] BadAnswer),
}

impl Conductor {
    /// A worker says something on its control stream.
    pub(crate) fn said(&mut self, now: Instant, worker: WorkerId, message: Message) {
        if let Err(misconduct) = self.control(now, worker, message) {
            self.hang_up(worker, &misconduct.into());
        }
    }

    /// A round trip to a worker takes so long at best.
    pub(crate) fn timed(&mut self, worker: WorkerId, rtt: Duration) {
        self.roster.timed(worker, rtt);
    }

    /// A worker's packets come from elsewhere now.
    pub(crate) fn moved(&mut self, now: Instant, worker: WorkerId, address: SocketAddr, sections: &Sections) {
        if let Err(error) = sections.understood(&[OwnAddresses::TAG]) {
            return self.hang_up(worker, &Misconduct::Section(error).into());
        }
        // Without addresses that can be read, it is where its packets come from.
        let own = OwnAddresses::find(sections).map(|own| own.sockets()).unwrap_or_default();
        let name = self.roster.name_of(worker).to_owned();
        self.publish(MeshEvent::WorkerMoved { worker: name, address: address.to_string() });
        let actions = self.roster.moved(now, worker, address, own);
        self.order(now, actions);
    }

    /// A frame came out of a pipeline.
    pub(crate) fn sampled(&mut self, now: Instant, worker: WorkerId, frame: &Frame) {
        if let Err(offence) = self.frame(now, worker, frame) {
            self.hang_up(worker, &offence);
        }
    }

    fn hang_up(&mut self, worker: WorkerId, offence: &Offence) {
        let (name, text) = (self.roster.name_of(worker).to_owned(), offence.to_string());
        self.publish(MeshEvent::FaultSeen { worker: name, text: text.clone() });
        self.actions.push_back(Action::HangUp(worker, text));
    }

    fn control(&mut self, now: Instant, worker: WorkerId, message: Message) -> Result<(), Misconduct> {
        match message {
            Message::ShardStatus(status) => self.shard_status(now, worker, status)?,
            Message::Linked { epoch, sections } => {
                sections.understood(&[LinkWay::TAG]).map_err(Misconduct::Section)?;
                // Who describes its link wrongly hurts nobody else.
                let way = LinkWay::find(&sections).ok().flatten();
                let actions = self.roster.linked(worker, epoch, way)?;
                self.order(now, actions);
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
            Message::StageReport(report) => {
                report.sections.understood(&[]).map_err(Misconduct::Section)?;
                self.report(worker, report);
            }
            Message::Measured(measured) => {
                measured.sections.understood(&[DiskRate::TAG, AttentionTime::TAG]).map_err(Misconduct::Section)?;
                let actions = self.roster.measured(now, worker, measured)?;
                self.order(now, actions);
            }
            Message::Drain | Message::Bye { .. } => self.left(now, worker, "it has left"),
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Reject { .. }
            | Message::Load(_)
            | Message::Route(_)
            | Message::Open(_)
            | Message::Close { .. }
            | Message::Keep { .. }
            | Message::Measure(_)
            | Message::Mask(_)
            | Message::Introduce(_)
            | Message::Grant(_)
            | Message::Revoke { .. }
            // The link hands these on by themselves.
            | Message::Moved { .. }
            | Message::Sought(_)
            | Message::Unload { .. } => return Err(Misconduct::Unasked("a message that only a coordinator sends")),
        }
        Ok(())
    }

    fn shard_status(&mut self, now: Instant, worker: WorkerId, status: ShardStatus) -> Result<(), Misconduct> {
        status.sections.understood(&[WeightOrigin::TAG]).map_err(Misconduct::Section)?;
        let actions = self.roster.shard_status(now, worker, status)?;
        self.order(now, actions);
        Ok(())
    }

    fn report(&mut self, worker: WorkerId, report: StageReport) {
        let stage = report.stage.0.into();
        if let Some(times) = self.roster.report(worker, report) {
            let name = self.roster.name_of(worker).to_owned();
            tracing::warn!("{name} takes {times:.1} times as long as it measured");
            self.publish(MeshEvent::WorkerSlow { worker: name, stage, times });
        }
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
        match self.prober.opened(epoch, session) {
            Some(outcomes) => self.order(now, outcomes),
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
        let name = self.roster.name_of(worker).to_owned();
        tracing::warn!("fault on {name}: {text}");
        self.publish(MeshEvent::FaultSeen { worker: name, text: text.clone() });
        let actions = match code {
            FaultCode::Link => self.roster.link_broken(now, worker, epoch, &text),
            FaultCode::Gap { .. }
            | FaultCode::UnknownSession
            | FaultCode::Capacity
            | FaultCode::Memory
            | FaultCode::Frame
            | FaultCode::Numerics
            | FaultCode::Ids
            | FaultCode::Mask
            | FaultCode::Internal => self.roster.broken(now, epoch, &text, Blame::Worker(worker)),
        };
        self.order(now, actions);
        Ok(())
    }

    fn session_fault(&mut self, now: Instant, worker: WorkerId, epoch: PlanEpoch, session: SessionId, text: &str) {
        let name = self.roster.name_of(worker).to_owned();
        let named = format!("{name}: {text}");
        tracing::warn!("fault on {named}");
        self.publish(MeshEvent::FaultSeen { worker: name, text: text.to_owned() });
        match self.prober.failed(epoch, session, &named) {
            Some(outcomes) => self.order(now, outcomes),
            None => {
                let actions = self.scheduler.failed(epoch, session, &named);
                self.order(now, actions);
            }
        }
    }

    fn frame(&mut self, now: Instant, worker: WorkerId, frame: &Frame) -> Result<(), Offence> {
        if !self.roster.may_sample(worker, frame.epoch)? {
            return Ok(());
        }
        if frame.kind != FrameKind::Sampled {
            return Err(Offence::NotSamples);
        }
        let answer = Answer::decode(frame)?;
        if let Some(outcomes) = self.prober.sampled(frame.epoch, frame.step) {
            self.order(now, outcomes);
            return Ok(());
        }
        self.scheduler.check_answer(frame, &answer)?;
        let actions = self.scheduler.stepped(now, frame, answer);
        self.order(now, actions);
        Ok(())
    }
}
