//! Random models with latent attention.

use std::{fs::File, path::Path};

use qmesh_models::{
    gguf::{GgufWriter, Value},
    tensor::TensorType,
};

use super::{Random, WORDS, fill, with_words};

/// Writes a model of a random shape with random weights: many heads over one latent, dense layers only.
pub(super) fn random_model(random: &mut Random, to: &Path) {
    let (heads, hidden, layers) = (4 * random.within(1..9), 32 * random.within(2..9), random.within(2..5));
    let (latent, plain, rotated) = (32 * random.within(2..9), 32 * random.within(1..4), 16 * random.within(1..5));
    let (value, inner, rank) = (32 * random.within(1..4), 32 * random.within(2..13), 32 * random.within(0..4));
    let dtype = [TensorType::F32, TensorType::F16, TensorType::Q8_0, TensorType::Q4_0][random.within(0..4)];
    let mut writer = with_words(GgufWriter::new("deepseek2"));
    for (key, count) in [
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
    ] {
        writer = writer.set(&format!("deepseek2.{key}"), Value::from(count as u64));
    }
    writer = writer.set("deepseek2.attention.layer_norm_rms_epsilon", 1e-5_f32);
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
    for (name, ne) in tensors {
        let ne: Vec<u64> = ne.into_iter().map(|n| n as u64).collect();
        let dtype = if ne.len() == 1 { TensorType::F32 } else { dtype };
        writer = writer.tensor(&format!("{name}.weight"), &ne, dtype);
    }
    writer.write(&mut File::create(to).unwrap(), |tensor, into| fill(random, tensor, into)).unwrap();
}
