//! Queries that grow with their position, so that attention stays sharp over long contexts.

use serde::{Deserialize, Serialize};

/// How queries grow with their position p: they are multiplied by 1 + scale · ln(1 + ⌊(p + offset) / length⌋) (Llama 4).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Temperature {
    /// Factor on the logarithm.
    pub scale: f32,
    /// What is added to a position: 1 where positions count from 1.
    pub offset: usize,
    /// Positions of each step.
    pub length: usize,
}
