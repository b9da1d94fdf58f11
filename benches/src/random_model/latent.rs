//! What random models with latent attention have that others have not: keys, tensors of the attention, layers of two kinds.

use anyhow::Result;
use qmesh_models::gguf::GgufWriter;

use super::dimensions::{Dimensions, ExpertChoice, ExpertCounts, IndexerDimensions, LatentDimensions};

/// The keys of `latent`, below `architecture`.
pub(super) fn metadata(mut writer: GgufWriter, architecture: &str, latent: &LatentDimensions) -> Result<GgufWriter> {
    let LatentDimensions { query_rank, rank, plain_dim, rope_dim, value_dim, dense_layers, shared, choice, .. } =
        *latent;
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, count) in [
        ("attention.q_lora_rank", query_rank),
        ("attention.kv_lora_rank", rank),
        ("attention.key_length_mla", plain_dim + rope_dim),
        ("attention.value_length_mla", value_dim),
        ("leading_dense_block_count", dense_layers),
        ("expert_shared_count", shared),
    ] {
        writer = writer.set(&key(name), u32::try_from(count)?);
    }
    if let Some(IndexerDimensions { heads, head_dim, used }) = latent.indexer {
        for (name, count) in [("head_count", heads), ("key_length", head_dim), ("top_k", used)] {
            writer = writer.set(&key(&format!("attention.indexer.{name}")), u32::try_from(count)?);
        }
    }
    // As published: YaRN from 4096 positions to forty times as many.
    let multiplier: f32 = match choice {
        ExpertChoice::Softmax => 0.0707,
        ExpertChoice::Grouped => 0.1,
    };
    writer = writer
        .set(&key("rope.scaling.type"), "yarn")
        .set(&key("rope.scaling.factor"), 40.0f32)
        .set(&key("rope.scaling.original_context_length"), 4096u32)
        .set(&key("rope.scaling.yarn_log_multiplier"), multiplier);
    Ok(match choice {
        ExpertChoice::Softmax => writer.set(&key("expert_gating_func"), 1u32),
        ExpertChoice::Grouped => writer
            .set(&key("expert_gating_func"), 2u32)
            .set(&key("expert_weights_norm"), true)
            .set(&key("expert_weights_scale"), 2.5f32)
            .set(&key("expert_group_count"), 8u32)
            .set(&key("expert_group_used_count"), 4u32),
    })
}

/// Tensors of the attention: names and elements along each dimension, the innermost first.
pub(super) fn attention(d: &Dimensions, latent: &LatentDimensions) -> Vec<(&'static str, Vec<u64>)> {
    let LatentDimensions { query_rank, rank, plain_dim, rope_dim, value_dim, .. } = *latent;
    let [hidden, heads, query_rank, rank, plain, rotated, value] =
        [d.hidden, d.heads, query_rank, rank, plain_dim, rope_dim, value_dim].map(|count| count as u64);
    let queries = heads * (plain + rotated);
    let mut places = vec![("attn_norm.weight", vec![hidden])];
    match query_rank {
        0 => places.push(("attn_q.weight", vec![hidden, queries])),
        _ => places.extend([
            ("attn_q_a.weight", vec![hidden, query_rank]),
            ("attn_q_a_norm.weight", vec![query_rank]),
            ("attn_q_b.weight", vec![query_rank, queries]),
        ]),
    }
    places.extend([
        ("attn_kv_a_mqa.weight", vec![hidden, rank + rotated]),
        ("attn_kv_a_norm.weight", vec![rank]),
        ("attn_k_b.weight", vec![plain, rank, heads]),
        ("attn_v_b.weight", vec![rank, value, heads]),
        ("attn_output.weight", vec![heads * value, hidden]),
    ]);
    if let Some(indexer) = latent.indexer {
        let [heads, head_dim] = [indexer.heads, indexer.head_dim].map(|count| count as u64);
        places.extend([
            ("indexer.attn_q_b.weight", vec![query_rank, heads * head_dim]),
            ("indexer.attn_k.weight", vec![hidden, head_dim]),
            ("indexer.k_norm.weight", vec![head_dim]),
            ("indexer.k_norm.bias", vec![head_dim]),
            ("indexer.proj.weight", vec![hidden, heads]),
        ]);
    }
    places
}

/// Tensors of the feed-forward half of `layer`; its experts are `experts`.
pub(super) fn feed_forward(
    d: &Dimensions,
    latent: &LatentDimensions,
    experts: ExpertCounts,
    layer: usize,
) -> Vec<(&'static str, Vec<u64>)> {
    let LatentDimensions { dense_layers, dense_inner, shared, choice, .. } = *latent;
    let [hidden, dense, inner, shared, count] =
        [d.hidden, dense_inner, d.inner, shared * d.inner, experts.count].map(|count| count as u64);
    let mut places = vec![("ffn_norm.weight", vec![hidden])];
    if layer < dense_layers {
        places.extend([
            ("ffn_gate.weight", vec![hidden, dense]),
            ("ffn_up.weight", vec![hidden, dense]),
            ("ffn_down.weight", vec![dense, hidden]),
        ]);
        return places;
    }
    places.extend([
        ("ffn_gate_inp.weight", vec![hidden, count]),
        ("ffn_gate_exps.weight", vec![hidden, inner, count]),
        ("ffn_up_exps.weight", vec![hidden, inner, count]),
        ("ffn_down_exps.weight", vec![inner, hidden, count]),
        ("ffn_gate_shexp.weight", vec![hidden, shared]),
        ("ffn_up_shexp.weight", vec![hidden, shared]),
        ("ffn_down_shexp.weight", vec![shared, hidden]),
    ]);
    match choice {
        ExpertChoice::Softmax => {}
        ExpertChoice::Grouped => places.push(("exp_probs_b.bias", vec![count])),
    }
    places
}
