//! What an honest worker never says. Whoever says it is hung up on by name.

use qmesh_net::{PlanEpoch, SectionError};

/// What an honest worker never says.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Misconduct {
    /// It has no stage in that plan.
    #[error("it spoke for plan {0}, in which it has no stage")]
    NoStage(PlanEpoch),
    /// No such plan was made.
    #[error("it spoke of plan {0}, which was never made")]
    NoPlan(PlanEpoch),
    /// Once is enough.
    #[error("it said a second time {0}")]
    Twice(&'static str),
    /// Only one stage sends these.
    #[error("it sent samples, but stage {0} is not the last one")]
    NotLast(usize),
    /// It insists on what this version does not know.
    #[error("its message cannot be taken: {0}")]
    Section(SectionError),
    /// Nobody asked.
    #[error("it answered what nobody had asked: {0}")]
    Unasked(&'static str),
}
