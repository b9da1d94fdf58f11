//! The name that the rooms of a worker have for one of its assignments.

/// One assignment of this process, counted from 1. Unlike plan epochs, turns do not start over when the coordinator does.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Turn(pub(crate) u64);
