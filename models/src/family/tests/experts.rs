//! Mixtures of experts, and what else large models bring.

use super::*;
use crate::spec::{
    ExpertForm, ExpertGroups, ExpertScales, ExpertsSpec, OutputScale, Routing, Scoring, SharedExpert, SharedGate,
    Temperature, Values, Weighed, Weighting,
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
    assert_eq!(shared.shared, Some(SharedExpert { inner: 32, gate: SharedGate::Sigmoid }));
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
    assert_eq!(glm.shared, Some(SharedExpert { inner: 16, gate: SharedGate::None }));
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
    assert_eq!(experts.shared, Some(SharedExpert { inner: 16, gate: SharedGate::None }));
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
    let small = Published { family: "gemma4", ..SMALL }.header().set("gemma4.attention.sliding_window", 8_u32);
    refused(
        &small.set("gemma4.embedding_length_per_layer_input", 256_u32),
        "embedding_length_per_layer_input\" is 256, expected 0 to 0",
    );
}
