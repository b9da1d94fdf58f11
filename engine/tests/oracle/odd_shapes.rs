//! A model whose shapes divide by nothing, with a type of its own for every matrix.

use super::*;

#[test]
fn odd_shapes_and_mixed_types_are_the_oracles() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("odd.gguf");
    let mut noise = Noise(1);
    fs::write(&path, odd_model().to_bytes(|tensor, bytes| fill(tensor.dtype, bytes, &mut noise))).unwrap();
    let file = ModelFile::open(path).unwrap();
    let mut report = Report::default();
    for (cuts, fed) in ways(file.spec()) {
        let distances = compare(file.spec(), &file, &cuts, Rounding::ENGINE, fed);
        report.hold(&format!("odd shapes, {fed:?} rows, cut at {cuts:?}"), &distances, QUANTISED);
    }
    report.check(3);
}

/// Layers of different widths, whose rows, heads and vocabulary are no multiples of sixteen.
fn odd_model() -> GgufWriter {
    use TensorType::*;
    let (hidden, vocab, heads, kv_heads, head_dim, inner) = (256, 101, 6, 3, 40, [288, 512, 512, 512]);
    let mut writer = GgufWriter::new("llama")
        .set("llama.block_count", inner.len() as u32)
        .set("llama.context_length", 512_u32)
        .set("llama.embedding_length", hidden)
        .set("llama.feed_forward_length", inner.map(|inner| inner as u32).as_slice())
        .set("llama.attention.head_count", heads)
        .set("llama.attention.head_count_kv", kv_heads)
        .set("llama.attention.key_length", head_dim)
        .set("llama.attention.value_length", head_dim)
        .set("llama.attention.layer_norm_rms_epsilon", 1e-5_f32)
        .tensor("token_embd.weight", &[hidden, vocab], Q5_0)
        .tensor("output_norm.weight", &[hidden], F32)
        .tensor("output.weight", &[hidden, vocab], Q4_0);
    let types = [
        [Q4K, Q8_0, F32, F16, MXFP4, IQ4XS, Q5_1],
        [Q6K, BF16, IQ4NL, BF16, Q2K, Q3K, Q5K],
        [IQ1S, IQ1M, IQ2XXS, BF16, IQ2XS, IQ2S, IQ3S],
        [IQ3XXS, NVFP4, TQ1_0, BF16, TQ2_0, Q1_0, Q2_0],
    ];
    for (layer, (inner, [q, k, v, output, gate, up, down])) in inner.into_iter().zip(types).enumerate() {
        let (width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let tensors = [
            ("attn_norm", vec![hidden], F32),
            ("attn_q", vec![hidden, width], q),
            ("attn_k", vec![hidden, kv_width], k),
            ("attn_v", vec![hidden, kv_width], v),
            ("attn_output", vec![width, hidden], output),
            ("ffn_norm", vec![hidden], F32),
            ("ffn_gate", vec![hidden, inner], gate),
            ("ffn_up", vec![hidden, inner], up),
            ("ffn_down", vec![inner, hidden], down),
        ];
        for (name, ne, dtype) in tensors {
            writer = writer.tensor(&format!("blk.{layer}.{name}.weight"), &ne, dtype);
        }
    }
    writer
}
