//! Latent attention, which the oracle computes in its plain form: what no family combines, and quantised matrices of heads.

use qmesh_models::spec::{LatentSpec, Mixer, RopePairing, Temperature};

use super::*;

type LatentChange = fn(&mut LatentSpec);

const CHANGES: [(&str, LatentChange); 4] = [
    ("no positions", |latent| latent.rope = None),
    ("queries that grow", |latent| latent.temperature = Some(Temperature { scale: 0.7, offset: 3, length: 20 })),
    ("halves that turn", |latent| latent.rope.as_mut().unwrap().pairing = RopePairing::Halves),
    ("another scale", |latent| latent.scale *= 0.5),
];

#[test]
fn what_no_family_with_latents_combines_is_the_oracles() {
    let golden = golden();
    let mut report = Report::default();
    for name in ["deepseek2", "deepseek2-lite"] {
        let (_, file) = golden.iter().find(|(other, _)| other == name).unwrap();
        let plain = compare(file.spec(), file, &[], Rounding::ENGINE, Fed::Own);
        for (what, change) in CHANGES {
            let mut spec = file.spec().clone();
            for layer in &mut spec.layers {
                let Mixer::Latent(latent) = &mut layer.mixer else { panic!("it has latents") };
                change(latent);
            }
            let distances = compare(&spec, file, &[1, 2], Rounding::ENGINE, Fed::Engine);
            report.hold(&format!("{name}: {what}"), &distances, LAYER);
            assert_ne!(plain.last, distances.last, "{name}: {what} changes nothing");
        }
    }
    report.check(2 * CHANGES.len());
}

/// The oracle rounds nothing between a head's query and its key, as the plain form has no such product.
#[test]
fn quantised_matrices_of_heads_are_as_near_as_rounded_activations_allow() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("latent.gguf");
    let mut noise = Noise(5);
    fs::write(&path, model().to_bytes(|tensor, bytes| fill(tensor.dtype, bytes, &mut noise))).unwrap();
    let file = ModelFile::open(path).unwrap();
    let mut report = Report::default();
    for (cuts, fed) in ways(file.spec()) {
        let distances = compare(file.spec(), &file, &cuts, Rounding::ENGINE, fed);
        report.hold(&format!("latents, {fed:?} rows, cut at {cuts:?}"), &distances, EXACT);
    }
    report.check(3);
}

/// Two dense layers whose heads' matrices are of different types; the vocabulary is no multiple of sixteen.
fn model() -> GgufWriter {
    use TensorType::{BF16, F16, F32, Q4_0, Q4K, Q5_0, Q5_1, Q6K, Q8_0};
    let (hidden, vocab, heads, rank, latent, plain, rotated, value, inner) = (256, 101, 6, 96, 256, 32, 16, 48, 288);
    let mut writer = GgufWriter::new("deepseek2");
    for (key, count) in [
        ("block_count", 2),
        ("context_length", 512),
        ("embedding_length", hidden),
        ("feed_forward_length", inner),
        ("attention.head_count", heads),
        ("attention.q_lora_rank", rank),
        ("attention.kv_lora_rank", latent),
        ("attention.key_length_mla", plain + rotated),
        ("attention.value_length_mla", value),
        ("rope.dimension_count", rotated),
        ("leading_dense_block_count", 2),
    ] {
        writer = writer.set(&format!("deepseek2.{key}"), count);
    }
    writer = writer
        .set("deepseek2.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .tensor("token_embd.weight", &[hidden, vocab], Q5_0)
        .tensor("output_norm.weight", &[hidden], F32)
        .tensor("output.weight", &[hidden, vocab], Q8_0);
    for (layer, [queries, row, keys, values]) in
        [[Q4_0, Q4K, Q8_0, Q4K], [BF16, Q6K, Q5_1, F16]].into_iter().enumerate()
    {
        let tensors = [
            ("attn_norm", vec![hidden], F32),
            ("attn_q_a", vec![hidden, rank], Q8_0),
            ("attn_q_a_norm", vec![rank], F32),
            ("attn_q_b", vec![rank, heads * (plain + rotated)], queries),
            ("attn_kv_a_mqa", vec![hidden, latent + rotated], row),
            ("attn_kv_a_norm", vec![latent], F32),
            ("attn_k_b", vec![plain, latent, heads], keys),
            ("attn_v_b", vec![latent, value, heads], values),
            ("attn_output", vec![heads * value, hidden], Q8_0),
            ("ffn_norm", vec![hidden], F32),
            ("ffn_gate", vec![hidden, inner], Q8_0),
            ("ffn_up", vec![hidden, inner], Q8_0),
            ("ffn_down", vec![inner, hidden], Q8_0),
        ];
        for (name, ne, dtype) in tensors {
            writer = writer.tensor(&format!("blk.{layer}.{name}.weight"), &ne, dtype);
        }
    }
    writer
}
