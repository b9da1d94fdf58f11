//! Masks on the last stage: each comes on the control stream and its row in a frame, in either order. A step is computed
//! when it has all of its masks.
//!
//! The coordinator sends a step's masks right before the step, which then goes through all stages: hardly ever does a step
//! wait. Masks that come before their frame are held until it comes, or a later one does.

use std::collections::BTreeMap;

use qmesh_net::{Fault, FaultCode, Frame, Mask, Message, SessionId, StepId, TokenMask, limits::MASKS_UNDER_WAY};

use super::{
    WorkerState,
    event::Action,
    stage::{Readiness, Stage},
};
use crate::worker::compute::{Command, Place, StepMasks};

/// The masks that came before their frames.
#[derive(Debug, Default)]
pub(super) struct EarlyMasks(BTreeMap<StepId, BTreeMap<Place, TokenMask>>);

/// Why a mask cannot be taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum MaskTrouble {
    #[error("a mask came to a stage that samples nothing")]
    Stage,
    #[error("a mask came for step {step}, where no row waits for it")]
    NoRow { step: StepId },
    #[error("more than {MASKS_UNDER_WAY} masks are held for steps to come")]
    TooMany,
}

impl WorkerState {
    /// A mask has come.
    pub(super) fn mask(&mut self, mask: Mask) {
        let Mask { epoch, step, session, position, tokens } = mask;
        let Some(stage) = self.of_epoch(epoch).filter(|stage| stage.readiness == Readiness::Ready) else {
            return tracing::debug!(%epoch, "a mask of a plan that is no more");
        };
        match stage.take_mask(step, (session, position), tokens) {
            Ok(()) => self.feed(),
            Err(trouble) => {
                // Without it a step to come would wait forever.
                let session = Some(session).filter(|_| trouble != MaskTrouble::TooMany);
                let (code, text) = (FaultCode::Mask, trouble.to_string());
                self.act(Action::Tell(Message::Fault(Fault { epoch, session, code, text })));
            }
        }
    }
}

impl Stage {
    /// The masks that are there for a frame that has come in, and the sessions of those that none of its rows waits for.
    pub(super) fn claim_masks(&mut self, frame: &Frame) -> (StepMasks, Vec<SessionId>) {
        if !self.assignment.is_last() {
            return (StepMasks::default(), Vec::new());
        }
        let mut masks = StepMasks::of(frame);
        let later = self.early_masks.0.split_off(&StepId(frame.step.0.saturating_add(1)));
        let early = std::mem::replace(&mut self.early_masks.0, later).remove(&frame.step).unwrap_or_default();
        // A session that is not in the frame was taken out by a stage before this one.
        let is_here = |session| frame.segments.iter().any(|segment| segment.session == session);
        let mut strays = Vec::new();
        for (place, mask) in early {
            if !masks.take(place, mask) && is_here(place.0) {
                strays.push(place.0);
            }
        }
        (masks, strays)
    }

    fn take_mask(&mut self, step: StepId, place: Place, mask: TokenMask) -> Result<(), MaskTrouble> {
        if !self.assignment.is_last() {
            return Err(MaskTrouble::Stage);
        }
        let queued = self.queue.iter_mut().find_map(|command| {
            if let Command::Step { frame, masks, .. } = command { (frame.step == step).then_some(masks) } else { None }
        });
        if let Some(masks) = queued {
            return if masks.take(place, mask) { Ok(()) } else { Err(MaskTrouble::NoRow { step }) };
        }
        if self.last_step.is_some_and(|last| step <= last) {
            return Err(MaskTrouble::NoRow { step });
        }
        if self.masks_held() >= MASKS_UNDER_WAY {
            return Err(MaskTrouble::TooMany);
        }
        match self.early_masks.0.entry(step).or_default().insert(place, mask) {
            None => Ok(()),
            Some(_) => Err(MaskTrouble::NoRow { step }),
        }
    }

    fn masks_held(&self) -> usize {
        let masks = |command: &Command| if let Command::Step { masks, .. } = command { masks.len() } else { 0 };
        let queued = self.queue.iter().map(masks);
        self.early_masks.0.values().map(BTreeMap::len).chain(queued).sum()
    }
}
