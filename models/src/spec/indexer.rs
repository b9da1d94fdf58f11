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

/// Sparse attention by blocks of positions (MiniMax M3): the query heads of each KV head attend to at most `used` blocks, which are
/// chosen for it, and in them to the positions up to the row's own.
///
/// `IndexKey` makes a position's key of the layer's normed input, `IndexQueries` a query for each KV head; all are RMS-normed
/// (`IndexKeyNorm`, `IndexQueryNorm`) and rotated as the layer's heads are. A block's score is the largest product of query and key
/// among its positions up to the row's own. The row's block and those before it that are `local` with it come first; then those
/// with the highest scores, of equal ones the earlier. While a row sees no more than `used` blocks, it attends to all.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct BlockIndexerSpec {
    /// Elements of a query, and of the one key of a position.
    pub head_dim: usize,
    /// Positions of a block.
    pub block: usize,
    /// Blocks that are attended to at most.
    pub used: usize,
    /// The last blocks of a row, its own among them, that are always chosen; at least one, and no more than `used`.
    pub local: usize,
}

impl BlockIndexerSpec {
    /// Elements that are made of a row's input for so many KV heads: their queries, and the position's key.
    pub fn row_len(&self, kv_heads: usize) -> usize {
        kv_heads.saturating_add(1).saturating_mul(self.head_dim)
    }

    /// Positions up to which a row attends to all.
    pub fn seen_whole(&self) -> usize {
        self.used.saturating_mul(self.block)
    }
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
