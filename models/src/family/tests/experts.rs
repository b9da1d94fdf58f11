//! Mixtures of experts, and what else large models bring.

use super::*;
use crate::spec::{
    BlockIndexerSpec, ExpertForm, ExpertGroups, ExpertScales, ExpertsSpec, KvSource, OutputGate, OutputScale, Routing,
    Scoring, SharedExpert, SharedGate, Temperature, Values, Weighed, Weighting,
};

/// The experts of the second layer of a golden model.
fn experts(name: &str) -> ExpertsSpec {
    golden(name).layers[1].ffn.experts().unwrap().clone()
}

#[test]
fn experts_are_counted_and_their_bytes_stay_with_their_layers() {
    let mixtral = ExpertsSpec {
        count: 4,
        used: 2,
        inner: 128,
        form: ExpertForm::Gated,
        latent: None,
        activation: Activation::Silu,
        bias: Bias::None,
        routing: Routing::plain(Scoring::SoftmaxOfUsed, Weighting::AsScored),
        shared: None,
    };
    assert_eq!(experts("mixtral"), mixtral);
    assert_eq!(experts("qwen3moe"), ExpertsSpec { count: 8, inner: 32, ..mixtral.clone() });
    let (shared, gpt_oss) = (experts("qwen2moe"), experts("gpt-oss"));
    assert_eq!(
        shared.shared,
        Some(SharedExpert { inner: 32, activation: Activation::Silu, gate: SharedGate::Sigmoid })
    );
    assert_eq!(shared.routing, Routing::plain(Scoring::Softmax, Weighting::AsScored));
    assert_eq!((gpt_oss.bias, gpt_oss.activation), (Bias::Present, Activation::SiluClamped));

    let model = golden("mixtral");
    let gates = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::ExpertGates));
    let gates = gates.unwrap();
    assert_eq!((gates.rows, gates.cols, gates.bytes), (4 * 128, 64, 4 * 128 * 64 * 4));
    assert_eq!(model.bytes_per_token(gates), gates.bytes / 2, "two of four");
    assert!(model.shard(1..2).tensors.contains(gates) && !model.shard(0..1).tensors.contains(gates));
}

#[test]
fn routers_are_as_their_files_say() {
    let glm = experts("glm4moe");
    let routing = Routing::plain(Scoring::Sigmoid, Weighting::Normalised);
    let routing = Routing { choice_bias: Bias::Present, weight_scale: 1.8, ..routing };
    assert_eq!((glm.count, glm.used, glm.inner, &glm.routing), (6, 2, 16, &routing));
    assert_eq!(glm.shared, Some(SharedExpert { inner: 16, activation: Activation::Silu, gate: SharedGate::None }));
    assert!(matches!(golden("glm4moe").layers[0].ffn, Ffn::Gated { inner: 48, .. }), "the first layer is dense");
    assert_eq!(experts("bailingmoe2").routing.groups, Some(ExpertGroups { count: 3, used: 2 }));
    let dots = experts("dots1").shared.map(|shared| shared.inner);
    assert_eq!(dots, Some(32), "as wide as two experts");
    let ernie = Routing::plain(Scoring::Softmax, Weighting::Normalised);
    assert_eq!(experts("ernie4_5-moe").routing, Routing { choice_bias: Bias::Present, ..ernie });
    assert_eq!(experts("olmoe").routing, Routing::plain(Scoring::Softmax, Weighting::AsScored));
    let granite = experts("granitemoe");
    assert_eq!((granite.shared.map(|shared| shared.inner), granite.routing.choice_bias), (Some(32), Bias::None));
}

#[test]
fn layers_that_draft_ahead_are_left_out() {
    let path = format!("{}/../tests/golden/tiny/glm4moe.gguf", env!("CARGO_MANIFEST_DIR"));
    let gguf = Gguf::open(path).unwrap();
    let model = spec(&gguf).unwrap();
    assert_eq!((model.layers.len(), drafting_layers(&gguf)), (2, 1));
    assert!(gguf.tensor("blk.2.nextn.eh_proj.weight").is_some());
    assert!(model.tensors.iter().all(|tensor| !tensor.name.starts_with("blk.2.")));
    let drafting = SMALL.header().set("llama.nextn_predict_layers", 1u32);
    let widths = drafting.set("llama.feed_forward_length", [128u32, 128].as_slice());
    assert_eq!(parse(&widths).unwrap().layers.len(), 1, "what is said of each layer is said of the last ones as well");
    refused(&SMALL.header().set("llama.nextn_predict_layers", 2u32), "is 2, expected 0 to 1");
}

#[test]
fn llama_4_attends_in_chunks_and_weighs_inputs_of_experts() {
    let model = golden("llama4");
    for (index, layer) in model.layers.iter().enumerate() {
        let (attention, is_fourth) = (attention(layer), index == 3);
        let grown = Some(Temperature { scale: 0.1, offset: 1, length: 8192 });
        let expected = match is_fourth {
            true => (Window::Full, QkNorm::None, grown, true),
            false => (Window::Chunked(8192), QkNorm::PerHeadRotatedBare, None, false),
        };
        let found = (attention.window, attention.qk_norm, attention.temperature, layer.rope().is_none());
        assert_eq!(found, expected, "layer {index}");
        assert_eq!(matches!(layer.ffn, Ffn::Experts(_)), index % 2 == 1, "layer {index}");
    }
    let routing = Routing { weighed: Weighed::Input, ..Routing::plain(Scoring::Sigmoid, Weighting::AsScored) };
    let experts = experts("llama4");
    assert_eq!((experts.routing, experts.used), (routing, 1));
    assert_eq!(experts.shared, Some(SharedExpert { inner: 16, activation: Activation::Silu, gate: SharedGate::None }));
}

#[test]
fn mistrals_queries_grow_and_yarn_is_as_their_files_say() {
    let model = golden("mistral3");
    let attention = attention(&model.layers[1]);
    assert_eq!(attention.temperature, Some(Temperature { scale: 0.4, offset: 0, length: 16 }));
    let yarn = RopeScaling::Yarn { factor: 4.0, original: 16, beta_fast: 1.0, beta_slow: 0.1 };
    assert_eq!((&rope(&model.layers[1]).scaling, rope(&model.layers[1]).magnitude), (&yarn, 1.0));
    let joined = experts("mistral4");
    assert_eq!((joined.form, joined.routing.scoring), (ExpertForm::GatedTogether, Scoring::Softmax));
    let model = golden("mistral4");
    let both = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::ExpertGateUps));
    let both = both.unwrap();
    assert_eq!((both.rows, both.cols), (8 * 2 * 16, 32));
    assert_eq!(model.bytes_per_token(both), both.bytes / 8 * 3, "three of eight");
}

#[test]
fn step_35_gates_heads_and_limits_some_activations() {
    let model = golden("step35");
    assert_eq!((model.layers.len(), model.cuts().count()), (4, 3), "a fifth drafts ahead");
    for (index, layer) in model.layers.iter().enumerate() {
        let attention = attention(layer);
        let expected = match index {
            1 | 2 => (6, Window::Sliding(8), 16, 100.0, RopeScaling::None),
            _ => (4, Window::Full, 8, 500.0, RopeScaling::Factors),
        };
        let rope = rope(layer);
        let found = (attention.heads, attention.window, rope.dims, rope.base, rope.scaling.clone());
        assert_eq!((found, attention.output_gate), (expected, OutputGate::PerHead), "layer {index}");
    }
    let activations = model.layers.iter().map(|layer| match &layer.ffn {
        Ffn::Gated { activation, .. } => (*activation, None),
        Ffn::Experts(experts) => (experts.activation, experts.shared.map(|shared| shared.activation)),
        Ffn::Plain { .. } | Ffn::Both { .. } | Ffn::None => panic!("{:?}", layer.ffn),
    });
    let (silu, limited) = (Activation::Silu, Activation::SiluLimited);
    let expected = [(limited(0.7), None), (silu, None), (silu, Some(limited(0.6))), (limited(0.5), Some(limited(0.8)))];
    assert_eq!(activations.collect::<Vec<_>>(), expected);
    let factors = model.tensors.iter().find(|tensor| tensor.role == TensorRole::RopeFactors).unwrap();
    assert_eq!(factors.cols, 8, "as many as the widest rotation has pairs");
    assert_eq!(model.layers[3].experts().unwrap().routing.scoring, Scoring::Sigmoid);
    let small = Published { family: "step35", ..SMALL }.header().set("step35.attention.sliding_window", 8_u32);
    let small = small.set("step35.expert_count", 4_u32).set("step35.expert_used_count", 2_u32);
    refused(&small, "step35.attention.sliding_window_pattern");
}

#[test]
fn gemma_4_has_heads_of_two_widths_and_values_that_are_keys() {
    let model = golden("gemma4");
    for (index, layer) in model.layers.iter().enumerate() {
        let attention = attention(layer);
        let (expected, scaled) = match index {
            3 => ((Window::Full, 32, 1, Values::KeysNormed), RopeScaling::Factors),
            _ => ((Window::Sliding(8), 16, 2, Values::OwnNormed), RopeScaling::None),
        };
        let found = (attention.window, attention.head_dim, attention.kv_heads, attention.values);
        assert_eq!((found, &rope(layer).scaling), (expected, &scaled), "layer {index}");
        assert_eq!((rope(layer).dims, attention.scale, layer.output_scale), (expected.1, 1.0, OutputScale::Learned));
    }
    assert_eq!((model.head.soft_cap, model.embedding_scale), (Some(30.0), 32_f32.sqrt()));
    let mixture = golden("gemma4-moe");
    assert!(matches!(mixture.layers[0].ffn, Ffn::Both { inner: 48, .. }));
    let experts = experts("gemma4-moe");
    assert_eq!((experts.form, experts.routing.expert_scales), (ExpertForm::GatedTogether, ExpertScales::Learned));
}

#[test]
fn gemma_4_e2b_shares_keys_and_values_and_has_embeddings_for_each_layer() {
    let model = golden("gemma4-e2b");
    let source = |layer: usize| attention(&model.layers[layer]).source;
    let of = |layer: usize| KvSource::Layer(LayerIndex(layer));
    assert_eq!(
        (0..7).map(source).collect::<Vec<_>>(),
        [KvSource::Own; 4].into_iter().chain([of(2), of(3), of(2)]).collect::<Vec<_>>()
    );
    assert_eq!(model.cuts().collect::<Vec<_>>(), [1, 2], "what is shared stays with whom it is shared with");
    assert_eq!((model.kv_bytes_per_position(&(0..4)), model.kv_bytes_per_position(&(4..7))), (4 * (3 * 32 + 32), 0));
    let inputs = model.layer_inputs.unwrap();
    assert_eq!((inputs.width, inputs.activation), (16, Activation::GeluTanh));
    assert_eq!([0, 2, 7].map(|layer| model.row_width(layer)), [32 + 7 * 16, 32 + 5 * 16, 32]);
    let has = |layers, role| model.shard(layers).tensors.iter().any(|tensor| tensor.role == role);
    assert!(has(0..2, TensorRole::LayerEmbeddings) && !has(2..7, TensorRole::LayerEmbeddings));
    assert!(has(2..7, TensorRole::Layer(LayerIndex(5), LayerTensor::InputGate)));
    // The file has them, and they are no use.
    assert!(!has(2..7, TensorRole::Layer(LayerIndex(5), LayerTensor::K)));
    let small = Published { family: "gemma4", layers: 4, ..SMALL }.header();
    let small = small.set("gemma4.attention.sliding_window", 8_u32).set("gemma4.attention.shared_kv_layers", 3_u32);
    refused(&small, "shared_kv_layers\" is 3, expected 0 to 2");
    let windows = [true, false, false, true].as_slice();
    let small = small.set("gemma4.attention.sliding_window_pattern", windows);
    refused(
        &small.set("gemma4.attention.shared_kv_layers", 1_u32),
        "shared_kv_layers\" is 1, expected layers behind one of the same shape, which layer 1 is not",
    );
}

#[test]
fn minimax_m3_chooses_blocks_in_layers_with_experts() {
    let model = golden("minimax-m3");
    let blocks = BlockIndexerSpec { head_dim: 32, block: 8, used: 3, local: 1 };
    let found = model.layers.iter().map(|layer| attention(layer).blocks.clone());
    assert_eq!(found.collect::<Vec<_>>(), [Some(blocks.clone()), Some(blocks)]);
    assert!(model.layers.iter().all(|layer| attention(layer).qk_norm == QkNorm::PerHead && rope(layer).dims == 8));
    assert_eq!(model.kv_bytes_per_position(&(0..1)), 2 * (2 * 32 + 32), "an indexer's keys count");
    let experts = experts("minimax-m3");
    assert_eq!((experts.activation, experts.routing.scoring), (Activation::SiluClamped, Scoring::Sigmoid));
    assert_eq!(experts.shared.map(|shared| shared.inner), Some(16));
    let counts = [("expert_count", 4), ("expert_used_count", 2), ("expert_shared_count", 1)];
    let indexer = [("head_count", 2), ("key_length", 16), ("top_k", 4), ("block_size", 128), ("local_blocks", 5)];
    let mut small = Published { family: "minimax-m3", ..SMALL }.header();
    for (key, count) in counts {
        small = small.set(&format!("minimax-m3.{key}"), count as u32);
    }
    for (key, count) in indexer {
        small = small.set(&format!("minimax-m3.attention.indexer.{key}"), count as u32);
    }
    // Norms of two layers' heads, and of the second alone an indexer, a router, experts and a shared one.
    let chosen = small.clone().set("minimax-m3.attention.indexer.local_blocks", 1_u32);
    refused(&chosen.clone().set("minimax-m3.leading_dense_block_count", 1_u32), "missing tensors (15)");
    refused(&chosen, "missing tensors (26)");
    refused(&small, "indexer.local_blocks\" is 5, expected 1 to 4");
    refused(&small.set("minimax-m3.attention.indexer.head_count", 4_u32), "indexer.head_count\" is 4, expected 2 to 2");
}
