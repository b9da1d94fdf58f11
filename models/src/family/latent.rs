//! Latent attention, from the keys that its families share.

use super::{
    ModelError, dense,
    metadata::{CONTEXT_MAX, HEADS_MAX, Metadata, ROPE_BASE, WIDTH_MAX},
    rope::{self, LatentScaling},
    tensors,
};
use crate::spec::{HeadMatrices, IndexerSpec, LatentQueries, LatentSpec, Positions, Rope, RopePairing, Temperature};

/// The attention of every layer.
pub(super) fn spec(m: &Metadata<'_>) -> Result<LatentSpec, ModelError> {
    let joined = m.has_tensor(&format!("blk.0.{}", tensors::JOINED));
    let matrices = if joined { HeadMatrices::Joined } else { HeadMatrices::Apart };
    let heads = m.count("attention.head_count", 1..=HEADS_MAX)?;
    let latent_dim = m.count("attention.kv_lora_rank", 1..=WIDTH_MAX)?;
    let rope_dim = m.count("rope.dimension_count", 2..=HEADS_MAX)?;
    if !rope_dim.is_multiple_of(2) {
        return Err(m.out_of_range("rope.dimension_count", rope_dim, "an even number".to_owned()));
    }
    // What a head's query and output have. Since the matrices are apart, the other two keys are about the row that all heads
    // share.
    let [query, value] = match matrices {
        HeadMatrices::Apart => ["attention.key_length_mla", "attention.value_length_mla"],
        HeadMatrices::Joined => ["attention.key_length", "attention.value_length"],
    };
    let (query_dim, value_dim) = (m.count(query, rope_dim + 1..=HEADS_MAX)?, m.count(value, 1..=HEADS_MAX)?);
    let queries = match m.count_or("attention.q_lora_rank", 0, 0..=WIDTH_MAX)? {
        0 => LatentQueries::Direct,
        rank => LatentQueries::Latent(rank),
    };
    let LatentScaling { scaling, magnitude, score_factor } = rope::latent_scaling(m)?;
    let base = m.float_or("rope.freq_base", 10_000.0, ROPE_BASE)?;
    Ok(LatentSpec {
        heads,
        queries,
        matrices,
        latent_dim,
        plain_dim: query_dim - rope_dim,
        rope_dim,
        value_dim,
        scale: score_factor / (query_dim as f32).sqrt(),
        temperature: temperature(m)?,
        rope: Some(Rope { pairing: RopePairing::Interleaved, dims: rope_dim, base, scaling, magnitude }),
        positions: Positions::All,
    })
}

/// What chooses the positions that rows attend to, rotated as `attention` is, but in pairs of its own.
pub(super) fn indexer(
    m: &Metadata<'_>,
    attention: &LatentSpec,
    pairing: RopePairing,
) -> Result<IndexerSpec, ModelError> {
    const HEAD_DIM: &str = "attention.indexer.key_length";
    const QUERY_LATENT: &str = "attention.q_lora_rank";
    let LatentQueries::Latent(_) = attention.queries else {
        return Err(m.unsupported(
            QUERY_LATENT,
            "0".to_owned(),
            "a latent of queries, which the indexer's are made of",
        ));
    };
    let rope = attention.rope.clone().map(|rope| Rope { pairing, ..rope });
    let rope = rope.ok_or_else(|| m.unsupported(HEAD_DIM, "an indexer".to_owned(), "layers that know positions"))?;
    Ok(IndexerSpec {
        heads: m.count("attention.indexer.head_count", 1..=HEADS_MAX)?,
        head_dim: m.count(HEAD_DIM, rope.dims..=HEADS_MAX)?,
        used: m.count("attention.indexer.top_k", 1..=CONTEXT_MAX)?,
        rope,
        eps: m.float_or("attention.layer_norm_epsilon", 1e-6, dense::EPS)?,
    })
}

/// How queries grow with their position, where they do.
fn temperature(m: &Metadata<'_>) -> Result<Option<Temperature>, ModelError> {
    match m.float_or("attention.temperature_scale", 0.0, 0.0..=1e3)? {
        0.0 => Ok(None),
        scale => {
            let length = m.count("attention.temperature_length", 1..=CONTEXT_MAX)?;
            Ok(Some(Temperature { scale, offset: 0, length }))
        }
    }
}
