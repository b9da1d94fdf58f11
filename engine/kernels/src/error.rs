//! What can go wrong before a kernel runs: once it runs, nothing can.

/// Why there is no instruction set to compute with.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// `QMESH_SIMD` names no tier, or one that this CPU lacks.
    #[error("QMESH_SIMD={value}: choose one of {known} or leave it unset")]
    Simd {
        /// What was set.
        value: String,
        /// The tiers of this machine, comma-separated.
        known: String,
    },
}
