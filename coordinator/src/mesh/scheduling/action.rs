//! What the scheduler wants done.

use qmesh_net::{DraftOrder, Frame, Mask, OpenSession, PlanEpoch, SessionId};

use crate::generate::GenerateEvent;

/// What the scheduler wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// To every stage of the epoch that it names.
    Open(OpenSession),
    /// To every stage of the epoch.
    Close(PlanEpoch, SessionId),
    /// To every stage of the epoch: the session has ended, but its first positions stay.
    Keep(PlanEpoch, SessionId, usize),
    /// To the last stage, before the frame with its row goes to stage 0.
    Mask(Mask),
    /// To stage 0.
    Frame(Frame),
    /// To the model that drafts.
    Draft(DraftOrder),
    /// To whoever submitted the sequence.
    Deliver(SessionId, GenerateEvent),
    /// Nothing runs on another pipeline than this epoch's any more.
    Followed(PlanEpoch),
}
