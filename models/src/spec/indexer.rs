//! Sparse attention: small heads that choose the positions which a row attends to.

use serde::{Deserialize, Serialize};

use super::Rope;

/// Which of the positions up to its own a row attends to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Positions {
    /// All.
    All,
    /// Those that the nearest layer before it has chosen of those that choose (GLM-5.2). No shard can begin with such a layer.
    AsBefore,
    /// Those that an indexer chooses.
    Chosen(IndexerSpec),
}

/// An indexer (DeepSeek V3.2, 2025, §2): a row attends to at most `used` positions, its own and those before it with the highest
/// scores; of equal scores the earlier position is chosen. While there are no more than `used`, it attends to all.
///
/// `IndexKey` makes a position's key of the layer's normed input; it is layer-normed (`IndexKeyNorm`, `IndexKeyNormBias`), its first
/// elements are rotated, and it is kept with the position's row. `IndexQueries` makes the queries of all heads of the latent of
/// the layer's own queries; their first elements are rotated. `IndexWeights` makes a weight for each head of the layer's normed
/// input. A position's score is Σ weight · max(0, query · key) over the heads. What models divide it by changes no choice.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct IndexerSpec {
    /// Heads that score.
    pub heads: usize,
    /// Elements of a query, and of the one key of a position.
    pub head_dim: usize,
    /// Positions that a row attends to at most.
    pub used: usize,
    /// Rotary position embedding of the first elements of queries and keys.
    pub rope: Rope,
    /// The ε of the keys' norm.
    pub eps: f32,
}

impl IndexerSpec {
    /// Elements of the queries of all heads.
    pub fn queries(&self) -> usize {
        self.heads.saturating_mul(self.head_dim)
    }

    /// Elements that are made of a row's input: its key, and the heads' weights.
    pub fn row_len(&self) -> usize {
        self.head_dim.saturating_add(self.heads)
    }
}
