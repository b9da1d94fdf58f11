//! MiniMax M3: norms on each head of q and k, a part of each head rotated, leading dense layers, a router of sigmoids, clamped
//! activations; in the layers with experts each KV head chooses the blocks of positions that it attends to.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{CONTEXT_MAX, HEADS_MAX, Metadata},
};
use crate::spec::{Activation, BlockIndexerSpec, Ffn, QkNorm, RopePairing, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::SiluClamped };
    let mut mixture = experts::as_said(m, plain.activation, Scoring::Sigmoid)?;
    mixture.shared = experts::shared_by_count(m, mixture.inner, mixture.activation)?;
    let mut layers = experts::layers(m, &plain, &mixture)?;
    for layer in &mut layers {
        let has_experts = matches!(layer.ffn, Ffn::Experts(_));
        let Some(attention) = layer.attention_mut() else { continue };
        attention.qk_norm = QkNorm::PerHead;
        if has_experts {
            let rotated = attention.rope.as_ref().map_or(0, |rope| rope.dims);
            attention.blocks = Some(indexer(m, attention.kv_heads, rotated)?);
        }
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}

/// What chooses blocks for so many KV heads, whose rotated elements its own have too.
fn indexer(m: &Metadata<'_>, kv_heads: usize, rotated: usize) -> Result<BlockIndexerSpec, ModelError> {
    m.count("attention.indexer.head_count", kv_heads..=kv_heads)?;
    let used = m.count("attention.indexer.top_k", 1..=CONTEXT_MAX)?;
    Ok(BlockIndexerSpec {
        head_dim: m.count("attention.indexer.key_length", rotated.max(1)..=HEADS_MAX)?,
        block: m.count("attention.indexer.block_size", 1..=CONTEXT_MAX)?,
        used,
        local: m.count("attention.indexer.local_blocks", 1..=used)?,
    })
}
