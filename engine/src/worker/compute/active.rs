//! A loaded shard at work for one turn: its sessions, and what its frames become.

use std::{collections::BTreeSet, sync::Arc};

use qmesh_models::footprint::sessions;
use qmesh_net::{Fault, FaultCode, Frame, FrameKind, OpenSession, PlanEpoch, SessionId, limits::CANDIDATES};

use super::{
    convert,
    failure::guarded,
    masks::StepMasks,
    trails::{SessionTrails, Stray},
};
use crate::{
    backend::LoadedShard,
    error::EngineError,
    step::{Prefix, Samples, Step, StepOutput},
    worker::assignment::Assignment,
};

/// A shard at work for one turn.
pub(super) struct ActiveShard {
    assignment: Arc<Assignment>,
    shard: Box<dyn LoadedShard>,
    /// Those that are open.
    sessions: BTreeSet<SessionId>,
    trails: SessionTrails,
}

/// What became of a frame.
pub(super) struct Computed {
    /// What goes on to the next stage.
    pub(super) frame: Option<Frame>,
    /// Rows computed.
    pub(super) rows: u64,
    /// What failed: single sessions, or the whole.
    pub(super) faults: Vec<Fault>,
}

impl ActiveShard {
    /// A shard without sessions.
    pub(super) fn new(assignment: Arc<Assignment>, shard: Box<dyn LoadedShard>) -> Self {
        Self { assignment, shard, sessions: BTreeSet::new(), trails: SessionTrails::default() }
    }

    pub(super) fn epoch(&self) -> PlanEpoch {
        self.assignment.epoch
    }

    pub(super) fn kv_positions_used(&self) -> u32 {
        u32::try_from(self.shard.kv_positions_used()).unwrap_or(u32::MAX)
    }

    /// Makes room for a session.
    ///
    /// # Errors
    /// In words, when it cannot be had.
    pub(super) fn open(&mut self, open: OpenSession) -> Result<(), String> {
        let (session, context) = (open.session, self.assignment.context);
        if open.max_positions as usize > context {
            return Err(format!("{} positions are more than the context of {context}", open.max_positions));
        }
        let most = sessions(self.assignment.kv_positions, context);
        if self.assignment.spec.has_states() && self.sessions.len() >= most {
            return Err(format!("{most} sessions are open, and there is room for the states of no more"));
        }
        if usize::from(open.sampling.top) > CANDIDATES {
            return Err(format!("{} candidates a row are more than {CANDIDATES}", open.sampling.top));
        }
        let (sampling, most) = (convert::sampling(open.sampling), open.max_positions as usize);
        let prefix = open.prefix.map(|p| Prefix { session: p.session.0, positions: p.positions as usize });
        let opened = guarded(|| match prefix {
            None => self.shard.open(session.0, most, sampling),
            Some(prefix) => self.shard.fork(session.0, most, sampling, prefix),
        });
        opened.map_err(|failure| failure.to_string())?;
        self.sessions.insert(session);
        self.trails.open(session, open.prefix);
        Ok(())
    }

    /// Frees a session, if it is there.
    pub(super) fn close(&mut self, session: SessionId) {
        if !self.sessions.remove(&session) {
            return;
        }
        self.trails.close(session);
        if let Err(failure) = guarded(|| self.shard.close(session.0)) {
            tracing::error!(%session, %failure, "an open session does not close");
        }
    }

    /// Frees what a session, if it is there, has beyond its first positions.
    pub(super) fn keep(&mut self, session: SessionId, positions: usize) {
        if !self.sessions.contains(&session) {
            return;
        }
        self.trails.keep(session, positions);
        if let Err(failure) = guarded(|| self.shard.keep(session.0, positions)) {
            tracing::error!(%session, %failure, "an open session cannot be shortened");
        }
    }

    /// Computes as much of a frame as can be: a session at fault is taken out, and the others go on.
    pub(super) fn step(&mut self, frame: &Frame, masks: StepMasks) -> Computed {
        let epoch = self.assignment.epoch;
        let fault = |(session, code), text| Fault { epoch, session, code, text };
        let mut faults = Vec::new();
        let mut step = match convert::to_step(&self.assignment, frame) {
            Ok(step) => step,
            Err(text) => {
                return Computed { frame: None, rows: 0, faults: vec![fault((None, FaultCode::Frame), text)] };
            }
        };
        for stray in self.trails.follow(frame) {
            faults.push(fault((Some(stray.session), FaultCode::Ids), self.disagreement(stray)));
            convert::remove(&mut step, stray.session, self.assignment.incoming_width());
        }
        for session in convert::allow(&mut step, masks) {
            faults.push(fault((Some(session), FaultCode::Mask), "a row has come without its mask".to_owned()));
            convert::remove(&mut step, session, self.assignment.incoming_width());
        }
        let output = loop {
            match self.compute(&step) {
                Ok(output) => break output,
                Err(error) => {
                    let (session, code) = convert::blame(&error);
                    faults.push(fault((session, code), error.to_string()));
                    let width = self.assignment.incoming_width();
                    if session.and_then(|session| convert::remove(&mut step, session, width)).is_none() {
                        return Computed { frame: None, rows: 0, faults };
                    }
                }
            }
        };
        let (output, failed) = convert::remove_failed(&mut step, output);
        for error in failed {
            let (session, code) = convert::blame(&error);
            faults.push(fault((session, code), error.to_string()));
        }
        let rows = step.ids.len() as u64;
        let out = convert::to_frame(&self.assignment, frame, step, output);
        // A hidden frame of no rows has no bytes; what it would say is in the faults.
        let sendable = out.kind == FrameKind::Sampled || rows > 0;
        Computed { frame: sendable.then_some(out), rows, faults }
    }

    fn disagreement(&self, Stray { session, positions }: Stray) -> String {
        let stage = self.assignment.stage.0;
        let sender = stage.checked_sub(1).map_or("the coordinator".to_owned(), |before| format!("stage {before}"));
        format!("{sender} and stage {stage} disagree about the first {positions} ids of session {session}")
    }

    fn compute(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        match (step.sequences.is_empty(), self.assignment.is_last()) {
            (true, true) => Ok(StepOutput::Sampled(Samples::default())),
            (true, false) => Ok(StepOutput::Hidden(Vec::new())),
            (false, _) => self.shard.step(step),
        }
    }
}
