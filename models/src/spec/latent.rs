//! Latent attention: what is kept of a position is one row, from which all heads' keys and values are made.

use serde::{Deserialize, Serialize};

use super::{IndexerSpec, Positions, Rope, Temperature};

/// Latent attention (DeepSeek-V2, 2024, §2.1), in the absorbed form: a query goes to the latent, not the latent to each head.
///
/// `KvA` makes a position's row of its hidden state: the latent, which is then RMS-normed (`KvANorm`), and a rotated key.
/// A head's query has a plain and a rotated part. The plain part is multiplied by the head's matrix of `KB`, which makes it
/// as wide as the latent; with the rotated part behind it, it meets the position's row. The head's value is the latent; what
/// it attends to is multiplied by the head's matrix of `VB`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// What the queries are made of.
    pub queries: LatentQueries,
    /// How the file holds the heads' matrices.
    pub matrices: HeadMatrices,
    /// Elements of the latent.
    pub latent_dim: usize,
    /// Elements of a query that know no positions.
    pub plain_dim: usize,
    /// Elements of a query, and of the one key of a position, that are rotated.
    pub rope_dim: usize,
    /// Elements of a head's output.
    pub value_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// How queries grow with their position, where they do.
    pub temperature: Option<Temperature>,
    /// Rotary position embedding; `None` for a layer that knows no positions.
    pub rope: Option<Rope>,
    /// Which positions a row attends to.
    pub positions: Positions,
}

/// What queries are made of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum LatentQueries {
    /// The hidden state (`Q`).
    Direct,
    /// A latent of their own (`QA`, RMS-normed by `QANorm`, then `QB`) of so many elements.
    Latent(usize),
}

/// How a file holds the matrices that each head has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum HeadMatrices {
    /// `KB`, which takes queries, and `VB`, each head after head.
    Apart,
    /// `KvB`, head after head: what makes a head's keys of the latent, then what makes its values. The former is turned into
    /// what takes queries when it is loaded (files from before April 2025).
    Joined,
}

impl LatentSpec {
    /// Elements of a head's query as it is projected.
    pub fn query_dim(&self) -> usize {
        self.plain_dim.saturating_add(self.rope_dim)
    }

    /// What chooses positions in the layer, where something does.
    pub fn indexer(&self) -> Option<&IndexerSpec> {
        match &self.positions {
            Positions::All | Positions::AsBefore => None,
            Positions::Chosen(indexer) => Some(indexer),
        }
    }

    /// Elements of a position's row, which all heads share as key.
    pub fn key_dim(&self) -> usize {
        self.latent_dim.saturating_add(self.rope_dim)
    }
}
