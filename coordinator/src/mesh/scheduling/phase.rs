//! Where a sequence stands between its request and its end.

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// It waits for room on the stages, or for a pipeline.
    Waiting,
    /// Its session is being opened on the stages.
    Opening {
        /// Stages that have not answered yet.
        missing: usize,
    },
    /// Its session is open on every stage.
    Running,
    /// It gives its room up to others: its session is closed as soon as no step carries its rows, and then it waits.
    Yielding,
    /// Over, but a step may still carry its rows.
    Ending,
}

impl Phase {
    /// The phase after one more stage has opened the session.
    pub(crate) fn answered(self) -> Self {
        match self {
            Self::Opening { missing: 0 | 1 } => Self::Running,
            Self::Opening { missing } => Self::Opening { missing: missing - 1 },
            Self::Waiting | Self::Running | Self::Yielding | Self::Ending => self,
        }
    }
}
