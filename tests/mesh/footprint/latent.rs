//! Random models with latent attention.

use std::path::Path;

use qmesh_models::tensor::TensorType;

use super::{Random, WORDS, write_model};

/// Writes a model of a random shape with random weights: many heads over one latent, dense layers only.
pub(super) fn random_model(random: &mut Random, to: &Path) {
    let (heads, hidden, layers) = (4 * random.within(1..9), 32 * random.within(2..9), random.within(2..5));
    let (latent, plain, rotated) = (32 * random.within(2..9), 32 * random.within(1..4), 16 * random.within(1..5));
    let (value, inner, rank) = (32 * random.within(1..4), 32 * random.within(2..13), 32 * random.within(0..4));
    let dtype = [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q4_0][random.within(0..4)];
    let counts = [
        ("context_length", 4096),
        ("embedding_length", hidden),
        ("block_count", layers),
        ("feed_forward_length", inner),
        ("attention.head_count", heads),
        ("attention.q_lora_rank", rank),
        ("attention.kv_lora_rank", latent),
        ("attention.key_length_mla", plain + rotated),
        ("attention.value_length_mla", value),
        ("rope.dimension_count", rotated),
        ("leading_dense_block_count", layers),
    ];
    let queries = heads * (plain + rotated);
    let mut tensors = vec![("token_embd".to_owned(), vec![hidden, WORDS]), ("output_norm".to_owned(), vec![hidden])];
    for layer in 0..layers {
        let of_queries = match rank {
            0 => vec![("attn_q", vec![hidden, queries])],
            rank => {
                vec![("attn_q_a", vec![hidden, rank]), ("attn_q_a_norm", vec![rank]), ("attn_q_b", vec![rank, queries])]
            }
        };
        let others = [
            ("attn_norm", vec![hidden]),
            ("attn_kv_a_mqa", vec![hidden, latent + rotated]),
            ("attn_kv_a_norm", vec![latent]),
            ("attn_k_b", vec![plain, latent, heads]),
            ("attn_v_b", vec![latent, value, heads]),
            ("attn_output", vec![heads * value, hidden]),
            ("ffn_norm", vec![hidden]),
            ("ffn_gate", vec![hidden, inner]),
            ("ffn_up", vec![hidden, inner]),
            ("ffn_down", vec![inner, hidden]),
        ];
        tensors.extend(of_queries.into_iter().chain(others).map(|(name, ne)| (format!("blk.{layer}.{name}"), ne)));
    }
    write_model(random, "deepseek2", &counts, (tensors, dtype), to);
}
