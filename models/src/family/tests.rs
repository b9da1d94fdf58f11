//! Each family on its golden file and by its published parameter count; bad models by name of what is wrong.

mod experts;
mod latent;
mod states;

use super::*;
use crate::{
    gguf::{GgufWriter, Strings, Value},
    spec::{
        Activation, AttentionSpec, Bias, ExpertsSpec, Ffn, LayerIndex, LayerTensor, NormKind, NormPlacement, QkNorm,
        Rope, RopePairing, RopeScaling, SharedExpert, Sinks, TensorRole, Window,
    },
    tensor::TensorType,
};

fn golden(name: &str) -> ModelSpec {
    let path = format!("{}/../tests/golden/tiny/{name}.gguf", env!("CARGO_MANIFEST_DIR"));
    spec(&Gguf::open(path).unwrap()).unwrap()
}

fn parse(writer: &GgufWriter) -> Result<ModelSpec, ModelError> {
    spec(&Gguf::parse(&writer.header(), writer.file_bytes()).unwrap())
}

fn rope(layer: &LayerSpec) -> &Rope {
    layer.rope().unwrap()
}

fn attention(layer: &LayerSpec) -> &AttentionSpec {
    layer.attention().unwrap()
}

const NO_BIAS: Bias = Bias::None;

#[test]
fn llama_is_plain() {
    let model = golden("llama");
    assert_eq!((model.name.as_str(), model.family.as_str()), ("tiny random llama", "llama"));
    assert_eq!((model.hidden, model.vocab, model.context, model.layers.len()), (64, 128, 2048, 3));
    assert_eq!((model.embedding_scale, model.head.matrix, model.tensors.len()), (1.0, HeadMatrix::Own, 30));
    let layer = &model.layers[2];
    let attention = attention(layer);
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim, attention.scale), (4, 2, 16, 0.25));
    assert_eq!((attention.qk_norm, attention.qkv_bias, attention.window), (QkNorm::None, Bias::None, Window::Full));
    let rope = rope(layer);
    assert_eq!((rope.pairing, rope.dims, rope.base), (RopePairing::Interleaved, 16, 10_000.0));
    assert_eq!(rope.scaling, RopeScaling::None);
    assert_eq!(layer.ffn, Ffn::Gated { inner: 128, activation: Activation::Silu, bias: NO_BIAS });
    assert_eq!((layer.norms, layer.norm), (NormPlacement::Pre, NormSpec { kind: NormKind::Rms, eps: 1e-5 }));
    let offsets: Vec<_> = model.tensors.iter().map(|t| t.offset).collect();
    assert!(offsets.is_sorted(), "the list is in file order");
    let k = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::K)).unwrap();
    assert_eq!((k.name.as_str(), k.rows, k.cols, k.bytes), ("blk.1.attn_k.weight", 32, 64, 32 * 64 * 4));
}

#[test]
fn llama_3_has_rope_factors_and_mistral_may_be_tied() {
    let model = golden("llama3-rope");
    assert!(model.layers.iter().all(|l| rope(l).scaling == RopeScaling::Factors));
    assert_eq!(rope(&model.layers[0]).base, 500_000.0);
    let factors = model.tensors.iter().find(|t| t.role == TensorRole::RopeFactors).unwrap();
    assert_eq!((factors.rows, factors.cols), (1, 8));
    let model = golden("mistral-tied");
    assert_eq!((model.head.matrix, attention(&model.layers[0]).kv_heads), (HeadMatrix::Tied, 1));
    assert!(model.tensors.iter().all(|t| t.role != TensorRole::Output));
}

#[test]
fn qwen2_has_biases() {
    let model = golden("qwen2");
    let attention = attention(&model.layers[1]);
    assert_eq!((attention.qkv_bias, rope(&model.layers[1]).pairing), (Bias::Present, RopePairing::Halves));
    assert_eq!(model.tensors.len(), 3 + 3 * 12);
}

#[test]
fn halves_may_stand_side_by_side() {
    let model = golden("command-r");
    let unbiased = NormSpec { kind: NormKind::LayerUnbiased, eps: 1e-5 };
    assert_eq!(
        (model.layers[1].norms, model.layers[1].norm, model.head.norm),
        (NormPlacement::Beside, unbiased, unbiased)
    );
    assert_eq!((model.head.logit_scale, model.tensors.len()), (0.5, 2 + 2 * 8));
    let windowed = golden("cohere2");
    let kinds = windowed.layers.iter().map(|layer| (attention(layer).window, attention(layer).rope.is_some()));
    let (near, far) = ((Window::Sliding(8), true), (Window::Full, false));
    assert_eq!(kinds.collect::<Vec<_>>(), [near, near, near, far]);
}

#[test]
fn what_families_vary_is_in_the_spec() {
    let model = golden("granite");
    assert_eq!((model.embedding_scale, model.head.logit_scale), (12.0, 1.0 / 6.0));
    assert_eq!((model.layers[0].residual_scale, attention(&model.layers[0]).scale), (0.22, 0.0625));
    let olmo = golden("olmo2");
    assert_eq!((olmo.layers[0].norms, attention(&olmo.layers[0]).qk_norm), (NormPlacement::Post, QkNorm::AllHeads));
    let starcoder = golden("starcoder2");
    assert_eq!(
        (starcoder.head.norm.kind, attention(&starcoder.layers[0]).output_bias),
        (NormKind::Layer, Bias::Present)
    );
    assert!(matches!(starcoder.layers[0].ffn, Ffn::Plain { activation: Activation::GeluTanh, .. }));
    let layers_without = |model: &ModelSpec| model.layers.iter().map(|l| l.rope().is_none()).collect::<Vec<_>>();
    assert_eq!(layers_without(&golden("smollm3"))[..4], [false, false, false, true]);
    assert_eq!(attention(&golden("gpt-oss").layers[0]).sinks, Sinks::PerHead);
    assert!(matches!(rope(&golden("llama-yarn").layers[0]).scaling, RopeScaling::Yarn { original: 512, .. }));
    assert_eq!(rope(&golden("phi3-longrope").layers[0]).scaling, RopeScaling::LongRope { original: 256 });
    assert_eq!(rope(&golden("glm4").layers[0]).dims * 2, attention(&golden("glm4").layers[0]).head_dim);
}

#[test]
fn gemma2_caps_scores_and_logits_and_alternates_windows() {
    let model = golden("gemma2");
    assert_eq!((model.embedding_scale, model.head.soft_cap, model.layers.len()), (8.0, Some(30.0), 3));
    for (i, layer) in model.layers.iter().enumerate() {
        let attention = attention(layer);
        let expected = if i == 1 { Window::Full } else { Window::Sliding(16) };
        assert_eq!((attention.window, rope(layer).base), (expected, 10_000.0), "layer {i}");
        assert_eq!((attention.soft_cap, attention.scale), (Some(50.0), 0.25));
        assert_eq!((attention.qk_norm, layer.norms), (QkNorm::None, NormPlacement::PreAndPost));
    }
    let huge = parse(&Published { layers: 46, ..GEMMA2_2B }.header()).unwrap();
    assert_eq!(
        (attention(&huge.layers[0]).window, attention(&huge.layers[0]).scale),
        (Window::Sliding(4096), 1.0 / 288_f32.sqrt())
    );
}

#[test]
fn gemma3_alternates_windows() {
    let model = golden("gemma3");
    assert_eq!((model.embedding_scale, model.head.matrix, model.layers.len()), (8.0, HeadMatrix::Tied, 7));
    for (i, layer) in model.layers.iter().enumerate() {
        let attention = attention(layer);
        let expected = if i == 5 { (Window::Full, 1e6) } else { (Window::Sliding(16), 10_000.0) };
        assert_eq!((attention.window, rope(layer).base), expected, "layer {i}");
        assert_eq!((attention.qk_norm, layer.norms), (QkNorm::PerHead, NormPlacement::PreAndPost));
        assert_eq!(layer.ffn, Ffn::Gated { inner: 128, activation: Activation::GeluTanh, bias: NO_BIAS });
        assert_eq!((rope(layer).pairing, attention.scale), (RopePairing::Halves, 0.25));
    }
}

#[test]
fn gemma3_scales_only_full_layers_and_the_27b_its_own_way() {
    let scaled = GEMMA_1B.header().set("gemma3.rope.scaling.type", "linear").set("gemma3.rope.scaling.factor", 8.0f32);
    let model = parse(&scaled).unwrap();
    assert_eq!(rope(&model.layers[5]).scaling, RopeScaling::Linear(8.0));
    assert_eq!(rope(&model.layers[4]).scaling, RopeScaling::None);
    assert_eq!(attention(&model.layers[4]).scale, 1.0 / 16.0);
    let of_27b = Published { layers: 62, hidden: 5376, heads: 32, kv_heads: 16, head_dim: 128, ..GEMMA_1B };
    assert_eq!(attention(&parse(&of_27b.header()).unwrap().layers[0]).scale, 1.0 / 168f32.sqrt());
    let bases = GEMMA_1B.header().set("gemma3.rope.freq_base_swa", 5000.0f32);
    let bases = parse(&bases).unwrap().layers[4..6].iter().map(|l| rope(l).base).collect::<Vec<_>>();
    assert_eq!(bases, [5000.0, 1e6]);
}

/// The shape of a published model.
#[derive(Clone, Copy)]
struct Published {
    family: &'static str,
    layers: u32,
    hidden: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    inner: u64,
    vocab: u64,
}

const LLAMA_1B: Published = Published {
    family: "llama",
    layers: 16,
    hidden: 2048,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    inner: 8192,
    vocab: 128_256,
};
const QWEN_HALF_B: Published = Published {
    family: "qwen2",
    layers: 24,
    hidden: 896,
    heads: 14,
    kv_heads: 2,
    head_dim: 64,
    inner: 4864,
    vocab: 151_936,
};
const GEMMA2_2B: Published = Published {
    family: "gemma2",
    layers: 26,
    hidden: 2304,
    heads: 8,
    kv_heads: 4,
    head_dim: 256,
    inner: 9216,
    vocab: 256_000,
};
const GEMMA_1B: Published = Published {
    family: "gemma3",
    layers: 26,
    hidden: 1152,
    heads: 4,
    kv_heads: 1,
    head_dim: 256,
    inner: 6912,
    vocab: 262_144,
};
/// Small enough to spoil by hand.
const SMALL: Published =
    Published { family: "llama", layers: 2, hidden: 64, heads: 4, kv_heads: 2, head_dim: 16, inner: 128, vocab: 32 };

impl Published {
    fn header(&self) -> GgufWriter {
        self.header_without("")
    }

    /// A whole header but for the key (without its family) or the tensor named `left_out`.
    fn header_without(&self, left_out: &str) -> GgufWriter {
        let mut writer = GgufWriter::new(self.family);
        let keys: [(&str, Value); 9] = [
            ("block_count", self.layers.into()),
            ("context_length", 8192u32.into()),
            ("embedding_length", self.hidden.into()),
            ("feed_forward_length", self.inner.into()),
            ("attention.head_count", self.heads.into()),
            ("attention.head_count_kv", self.kv_heads.into()),
            ("attention.layer_norm_rms_epsilon", 1e-6f32.into()),
            ("attention.key_length", self.head_dim.into()),
            ("attention.value_length", self.head_dim.into()),
        ];
        for (key, value) in keys.into_iter().filter(|(key, _)| *key != left_out) {
            writer = writer.set(&format!("{}.{key}", self.family), value);
        }
        if self.family == "gemma3" {
            writer = writer.set("gemma3.attention.sliding_window", 512u32);
        }
        for (name, ne) in self.tensors().iter().filter(|(name, _)| name != left_out) {
            writer = writer.tensor(name, ne, TensorType::F32);
        }
        writer
    }

    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let (hidden, inner, head_dim) = (self.hidden, self.inner, self.head_dim);
        let (q, kv) = (self.heads * head_dim, self.kv_heads * head_dim);
        let mut of_layer = vec![
            ("attn_norm.weight", vec![hidden]),
            ("attn_q.weight", vec![hidden, q]),
            ("attn_k.weight", vec![hidden, kv]),
            ("attn_v.weight", vec![hidden, kv]),
            ("attn_output.weight", vec![q, hidden]),
            ("ffn_norm.weight", vec![hidden]),
            ("ffn_gate.weight", vec![hidden, inner]),
            ("ffn_up.weight", vec![hidden, inner]),
            ("ffn_down.weight", vec![inner, hidden]),
        ];
        match self.family {
            "qwen2" => {
                of_layer.extend([("attn_q.bias", vec![q]), ("attn_k.bias", vec![kv]), ("attn_v.bias", vec![kv])])
            }
            "gemma2" => {
                of_layer.extend([("post_attention_norm.weight", vec![hidden]), ("post_ffw_norm.weight", vec![hidden])])
            }
            "gemma3" => of_layer.extend([
                ("attn_q_norm.weight", vec![head_dim]),
                ("attn_k_norm.weight", vec![head_dim]),
                ("post_attention_norm.weight", vec![hidden]),
                ("post_ffw_norm.weight", vec![hidden]),
            ]),
            _ => {}
        }
        let layers =
            (0..self.layers).flat_map(|i| of_layer.iter().map(move |(name, ne)| (format!("blk.{i}.{name}"), ne)));
        let ends = [("token_embd.weight", vec![hidden, self.vocab]), ("output_norm.weight", vec![hidden])];
        let ends = ends.map(|(name, ne)| (name.to_owned(), ne));
        ends.into_iter().chain(layers.map(|(name, ne)| (name, ne.clone()))).collect()
    }
}

#[test]
fn parameters_are_as_many_as_published() {
    for (model, parameters) in
        [(LLAMA_1B, 1_235_814_400), (QWEN_HALF_B, 494_032_768), (GEMMA2_2B, 2_614_341_888), (GEMMA_1B, 999_885_952)]
    {
        let spec = parse(&model.header()).unwrap();
        assert_eq!(spec.tensors.iter().map(|t| t.rows * t.cols).sum::<usize>(), parameters, "{}", model.family);
        assert_eq!(spec.shard_bytes(&(0..spec.layers.len())), 4 * parameters as u64);
    }
}

fn refused(writer: &GgufWriter, expected: &str) {
    let error = parse(writer).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    assert!(!error.contains('\n'), "{error:?} is not one line");
}

#[test]
fn missing_keys_are_named_or_have_ggmls_default() {
    for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"] {
        refused(&SMALL.header_without(key), &format!("key \"llama.{key}\" is missing"));
    }
    refused(&SMALL.header_without("attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon\" is missing");
    assert_eq!(attention(&parse(&SMALL.header_without("attention.key_length")).unwrap().layers[0]).head_dim, 16);
    // As many key/value heads as query heads, so that the matrices are too small.
    refused(
        &SMALL.header_without("attention.head_count_kv"),
        "\"blk.0.attn_k.weight\" has the shape [64, 32], expected [64, 64]",
    );
}

#[test]
fn keys_out_of_range_are_refused() {
    let rows: [(&str, Value, &str); 17] = [
        ("attention.head_count", 0u32.into(), "is 0, expected 1 to 4096"),
        ("attention.head_count_kv", 0u32.into(), "is 0, expected 1 to 4096"),
        ("attention.head_count_kv", 3u32.into(), "is 3, expected a divisor of the 4 query heads"),
        ("attention.head_count_kv", 8u32.into(), "is 8, expected a divisor of the 4 query heads"),
        ("block_count", 0u32.into(), "is 0, expected 1 to 1024"),
        ("block_count", 1_000_000_000u32.into(), "is 1000000000, expected 1 to 1024"),
        ("block_count", (-1i32).into(), "should be an unsigned integer, not the integer -1"),
        ("context_length", 0u32.into(), "is 0, expected 1 to"),
        ("embedding_length", u64::MAX.into(), "expected 1 to"),
        (
            "feed_forward_length",
            [128u32].as_slice().into(),
            "is an array of 1, expected one value for each of 2 layers",
        ),
        ("attention.layer_norm_rms_epsilon", f32::NAN.into(), "is NaN, expected"),
        ("rope.freq_base", f32::INFINITY.into(), "is inf, expected"),
        ("rope.freq_base", 0.0f32.into(), "is 0.0, expected"),
        ("rope.dimension_count", 15u32.into(), "is 15, expected an even number"),
        ("rope.dimension_count", 18u32.into(), "is 18, expected 2 to 16"),
        ("rope.scaling.factor", f32::NAN.into(), "is NaN, expected"),
        ("attention.value_length", 8u32.into(), "is 8, which is not supported; supported: the key length 16"),
    ];
    for (key, value, expected) in rows {
        let key = format!("llama.{key}");
        let header = SMALL.header().set(&key, value);
        refused(&header, &format!("key {key:?} "));
        refused(&header, expected);
    }
    refused(&SMALL.header().set("llama.vocab_size", 31u32), "31 tokens in the vocabulary, 32 rows");
    let tokens: Strings = (0..33).map(|i| i.to_string()).collect();
    refused(&SMALL.header().set("tokenizer.ggml.tokens", tokens), "33 tokens in the vocabulary, 32 rows");
}

#[test]
fn what_would_run_wrongly_is_refused_by_name() {
    refused(
        &Published { family: "mamba", ..SMALL }.header(),
        "architecture \"mamba\" is not supported; supported: bailingmoe, ",
    );
    refused(&GgufWriter::new("llama"), "only a vocabulary");
    refused(
        &SMALL.header().set("llama.rope.scaling.type", "su"),
        "is \"su\", which is not supported; supported: \"none\", \"linear\"",
    );
    refused(
        &Published { family: "qwen2", ..SMALL }.header().set("qwen2.expert_count", 8u32),
        "key \"qwen2.expert_count\" is the integer 8, which is not supported",
    );
    refused(&SMALL.header().set("llama.attention.causal", false), "\"llama.attention.causal\" is the boolean false");
    refused(&SMALL.header().set("llama.logit_scale", 8.0f32), "\"llama.logit_scale\" is the float 8.0");
    let neutral = SMALL.header().set("llama.expert_count", 0u32).set("llama.attention.causal", true);
    assert!(parse(&neutral.set("llama.rope.scaling.type", "none").set("llama.rope.scaling.factor", 4.0f32)).is_ok());
    let linear = SMALL.header().set("llama.rope.scaling.factor", 4.0f32);
    assert_eq!(rope(&parse(&linear).unwrap().layers[1]).scaling, RopeScaling::Linear(4.0));
    refused(&linear.tensor("rope_freqs.weight", &[8], TensorType::F32), "supported: 1 beside factors as a tensor");
    let mut header =
        SMALL.header_without("blk.1.ffn_up.weight").tensor("blk.1.ffn_up.weight", &[64, 128], TensorType::F32).header();
    let up = header.windows(19).position(|window| window == b"blk.1.ffn_up.weight").unwrap() + 19 + 4 + 16;
    for (id, name) in [(9u32, "Q8_1"), (99, "ggml type 99")] {
        header[up..up + 4].copy_from_slice(&id.to_le_bytes());
        let error = spec(&Gguf::parse(&header, SMALL.header().file_bytes()).unwrap()).unwrap_err().to_string();
        let start = format!("tensor \"blk.1.ffn_up.weight\" has the type {name}, which is not supported");
        assert!(error.starts_with(&start) && error.ends_with("NVFP4, TQ1_0, TQ2_0, Q1_0, Q2_0"), "{error}");
    }
}

#[test]
fn tensors_are_complete_and_shaped_as_the_keys_say() {
    for name in ["token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight", "blk.0.ffn_gate.weight"] {
        refused(&SMALL.header_without(name), &format!("missing tensors (1): {name:?}"));
    }
    let more = Published { layers: 1, ..SMALL }.header().set("llama.block_count", 2u32);
    refused(
        &more,
        "missing tensors (9): \"blk.1.attn_norm.weight\", \"blk.1.attn_q.weight\", \"blk.1.attn_k.weight\" and 6 more",
    );
    let fewer = SMALL.header().set("llama.block_count", 1u32);
    refused(&fewer, "left-over tensors (9), which this architecture does not use: \"blk.1.");
    for (name, ne) in [
        ("blk.1.attn_q.weight", vec![64, 32]),
        ("blk.0.ffn_down.weight", vec![64, 128]),
        ("output_norm.weight", vec![1, 64]),
    ] {
        let header = SMALL.header_without(name).tensor(name, &ne, TensorType::F32);
        refused(&header, &format!("tensor {name:?} has the shape {ne:?}, expected ["));
    }
    assert!(parse(&SMALL.header().set("llama.feed_forward_length", [128u32, 128].as_slice())).is_ok());
    let mixed =
        SMALL.header_without("blk.1.ffn_up.weight").tensor("blk.1.ffn_up.weight", &[64, 128, 1], TensorType::Q8_0);
    assert!(parse(&mixed).is_ok(), "quants may be mixed, and trailing dimensions of 1 say nothing");
}

#[test]
fn fused_tensors_become_ranges_of_rows() {
    let fused = SMALL.tensors().into_iter().filter(|(name, _)| {
        !["attn_q.w", "attn_k.w", "attn_v.w", "ffn_gate.w", "ffn_up.w"].iter().any(|part| name.contains(part))
    });
    let mut writer = GgufWriter::new("llama");
    for (key, value) in Gguf::parse(&SMALL.header().header(), SMALL.header().file_bytes()).unwrap().entries() {
        writer = writer.set(key, value.clone());
    }
    for (name, ne) in fused {
        writer = writer.tensor(&name, &ne, TensorType::F32);
    }
    for i in 0..2 {
        writer = writer.tensor(&format!("blk.{i}.attn_qkv.weight"), &[64, 128], TensorType::F32);
        writer = writer.tensor(&format!("blk.{i}.ffn_up.weight"), &[64, 256], TensorType::F32);
    }
    let gguf = Gguf::parse(&writer.header(), writer.file_bytes()).unwrap();
    let model = spec(&gguf).unwrap();
    let place = |tensor| {
        let found = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), tensor)).unwrap();
        (found.offset - gguf.tensor(&found.name).unwrap().offset, found.rows, found.bytes)
    };
    assert_eq!(place(LayerTensor::Q), (0, 64, 64 * 256));
    assert_eq!(place(LayerTensor::K), (64 * 256, 32, 32 * 256));
    assert_eq!(place(LayerTensor::V), (96 * 256, 32, 32 * 256));
    assert_eq!(place(LayerTensor::Up), (128 * 256, 128, 128 * 256));
}

#[test]
fn shards_cover_the_model() {
    let model = golden("llama3-rope");
    let whole = model.shard_bytes(&(0..3));
    let factors = model.tensors.iter().find(|t| t.role == TensorRole::RopeFactors).unwrap().bytes;
    assert_eq!(model.shard_bytes(&(0..1)) + model.shard_bytes(&(1..3)), whole + factors, "both hold the factors");
    let last = golden("gemma3").shard(6..7);
    assert!(last.tensors.iter().any(|t| t.role == TensorRole::Embedding), "a tied head needs the embedding");
    assert_eq!(last.shard_bytes(&(6..7)), last.tensors.iter().map(|t| t.bytes).sum::<u64>());
}
