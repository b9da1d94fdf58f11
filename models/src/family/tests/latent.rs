//! Families with latent attention: what the golden files are, and bad ones by name of what is wrong.

use super::*;
use crate::spec::{
    ExpertGroups, ExpertsSpec, HeadMatrices, LatentQueries, LatentSpec, Mixer, Positions, Routing, Scoring,
    SharedExpert, SharedGate, Temperature, Weighting,
};

fn latent(layer: &LayerSpec) -> &LatentSpec {
    let Mixer::Latent(latent) = &layer.mixer else { panic!("{:?}", layer.mixer) };
    latent
}

fn experts(layer: &LayerSpec) -> &ExpertsSpec {
    let Ffn::Experts(experts) = &layer.ffn else { panic!("{:?}", layer.ffn) };
    experts
}

#[test]
fn deepseek2_lite_makes_queries_of_the_hidden_state() {
    let model = golden("deepseek2-lite");
    assert_eq!((model.layers.len(), model.kv_bytes_per_position(&(0..3))), (3, 3 * 2 * 40));
    let attention = latent(&model.layers[0]);
    assert_eq!((attention.heads, attention.queries, attention.latent_dim), (4, LatentQueries::Direct, 32));
    assert_eq!((attention.plain_dim, attention.rope_dim, attention.value_dim), (16, 8, 16));
    assert!(matches!(model.layers[0].ffn, Ffn::Gated { inner: 48, .. }), "the first is dense");
    let mixture = experts(&model.layers[1]);
    assert_eq!((mixture.count, mixture.used, mixture.inner), (4, 2, 16));
    assert_eq!(mixture.routing, Routing::plain(Scoring::Softmax, Weighting::AsScored));
    assert_eq!(mixture.shared, Some(SharedExpert { inner: 32, activation: Activation::Silu, gate: SharedGate::None }));
    // YaRN's factor is in the scores, squared, and not in the rotation.
    let rope = rope(&model.layers[0]);
    assert!(matches!(rope.scaling, RopeScaling::Yarn { factor: 4.0, original: 32, .. }));
    assert!((rope.magnitude - 1.0).abs() < 1e-6);
    let expected = (1.0 + 0.0707 * 4_f32.ln()).powi(2) / 24_f32.sqrt();
    assert!((attention.scale - expected).abs() < 1e-6, "{}", attention.scale);
}

#[test]
fn files_with_joined_matrices_are_the_same_model() {
    let (joined, apart) = (golden("deepseek2-lite-joined"), golden("deepseek2-lite"));
    assert_eq!(latent(&joined.layers[1]).matrices, HeadMatrices::Joined);
    let mut as_apart = latent(&joined.layers[1]).clone();
    as_apart.matrices = HeadMatrices::Apart;
    assert_eq!(&as_apart, latent(&apart.layers[1]));
    let both = joined.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::KvB)).unwrap();
    assert_eq!((both.rows, both.cols), (4 * 32, 32));
}

#[test]
fn deepseek2_has_a_latent_for_queries_and_chooses_experts_in_groups() {
    let model = golden("deepseek2");
    assert_eq!(latent(&model.layers[2]).queries, LatentQueries::Latent(24));
    let routing = &experts(&model.layers[2]).routing;
    assert_eq!((routing.scoring, routing.weighting), (Scoring::Sigmoid, Weighting::Normalised));
    assert_eq!((routing.choice_bias, routing.weight_scale), (Bias::Present, 2.5));
    assert_eq!(routing.groups, Some(ExpertGroups { count: 4, used: 2 }));
    let keys = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::KB)).unwrap();
    assert_eq!((keys.rows, keys.cols), (4 * 32, 16), "a matrix a head");
}

#[test]
fn indexers_choose_positions_and_are_rotated_in_their_own_pairs() {
    for (name, pairing, scoring, groups) in [
        ("deepseek32", RopePairing::Halves, Scoring::Sigmoid, true),
        ("glm-dsa", RopePairing::Interleaved, Scoring::Sigmoid, false),
    ] {
        let model = golden(name);
        for layer in model.layers.iter().filter(|layer| layer.index_rope().is_some()) {
            let latent = latent(layer);
            let indexer = latent.indexer().unwrap();
            assert_eq!((indexer.heads, indexer.head_dim, indexer.used, indexer.eps), (8, 64, 32, 1e-6), "{name}");
            let rope = latent.rope.as_ref().unwrap();
            assert_eq!((rope.pairing, indexer.rope.pairing), (RopePairing::Interleaved, pairing), "{name}");
            assert_eq!((indexer.rope.dims, &indexer.rope.scaling), (rope.dims, &rope.scaling), "{name}");
            assert_eq!(layer.ropes().count(), 2);
        }
        let routing = &experts(model.layers.last().unwrap()).routing;
        assert_eq!((routing.scoring, routing.groups.is_some()), (scoring, groups), "{name}");
        assert_eq!(model.kv_bytes_per_position(&(0..1)), 2 * (40 + 64), "{name}: an indexer's keys count");
    }
}

#[test]
fn layers_that_go_by_an_earlier_one_are_not_cut_off_from_it() {
    let model = golden("glm-dsa");
    let positions = |layer: usize| &latent(&model.layers[layer]).positions;
    assert_eq!(positions(1), &Positions::AsBefore);
    assert_eq!((positions(0), positions(0)), (positions(2), positions(3)));
    assert_eq!(model.cuts().collect::<Vec<_>>(), [2, 3]);
    assert_eq!(model.kv_bytes_per_position(&(1..2)), 2 * 40, "it has no keys of an indexer");
    assert_eq!(golden("deepseek32").cuts().collect::<Vec<_>>(), [1, 2]);
}

/// A small model of one dense layer and one with experts.
fn small() -> GgufWriter {
    let counts = [
        ("block_count", 2),
        ("context_length", 512),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.kv_lora_rank", 32),
        ("attention.key_length_mla", 24),
        ("attention.value_length_mla", 16),
        ("rope.dimension_count", 8),
        ("leading_dense_block_count", 1),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 16),
        ("expert_shared_count", 1),
    ];
    let mut writer = GgufWriter::new("deepseek2").set("deepseek2.attention.layer_norm_rms_epsilon", 1e-6_f32);
    for (key, count) in counts {
        writer = writer.set(&format!("deepseek2.{key}"), count as u32);
    }
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![64, 128]), ("output_norm.weight".to_owned(), vec![64])];
    let attention: [(&str, &[u64]); 8] = [
        ("attn_norm", &[64]),
        ("attn_q", &[64, 96]),
        ("attn_kv_a_mqa", &[64, 40]),
        ("attn_kv_a_norm", &[32]),
        ("attn_k_b", &[16, 32, 4]),
        ("attn_v_b", &[32, 16, 4]),
        ("attn_output", &[64, 64]),
        ("ffn_norm", &[64]),
    ];
    let dense: [(&str, &[u64]); 3] = [("ffn_gate", &[64, 96]), ("ffn_up", &[64, 96]), ("ffn_down", &[96, 64])];
    let mixture: [(&str, &[u64]); 7] = [
        ("ffn_gate_inp", &[64, 4]),
        ("ffn_gate_exps", &[64, 16, 4]),
        ("ffn_up_exps", &[64, 16, 4]),
        ("ffn_down_exps", &[16, 64, 4]),
        ("ffn_gate_shexp", &[64, 16]),
        ("ffn_up_shexp", &[64, 16]),
        ("ffn_down_shexp", &[16, 64]),
    ];
    for (layer, ffn) in [&dense[..], &mixture].into_iter().enumerate() {
        let both = attention.iter().chain(ffn);
        tensors.extend(both.map(|(name, ne)| (format!("blk.{layer}.{name}.weight"), ne.to_vec())));
    }
    tensors.iter().fold(writer, |writer, (name, ne)| writer.tensor(name, ne, TensorType::F32))
}

fn refused(writer: &GgufWriter, says: &str) {
    let error = parse(writer).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[test]
fn what_files_leave_out_has_llama_cpps_default() {
    let model = parse(&small()).unwrap();
    assert_eq!(latent(&model.layers[0]).scale, 1.0 / 24_f32.sqrt());
    assert_eq!((latent(&model.layers[0]).temperature, model.head.matrix), (None, HeadMatrix::Tied));
    assert_eq!(experts(&model.layers[1]).routing.scoring, Scoring::Softmax);
    let tempered = small()
        .set("deepseek2.attention.temperature_scale", 0.1_f32)
        .set("deepseek2.attention.temperature_length", 8192_u32);
    let temperature = latent(&parse(&tempered).unwrap().layers[1]).temperature;
    assert_eq!(temperature, Some(Temperature { scale: 0.1, offset: 0, length: 8192 }));
    // Without a multiplier, cosines and sines have YaRN's factor, and scores have it twice.
    let yarn = small()
        .set("deepseek2.rope.scaling.type", "yarn")
        .set("deepseek2.rope.scaling.factor", 40.0_f32)
        .set("deepseek2.rope.scaling.original_context_length", 4096_u32);
    let model = parse(&yarn).unwrap();
    let factor = 0.1 * 40_f32.ln() + 1.0;
    assert!((rope(&model.layers[0]).magnitude - factor).abs() < 1e-6);
    assert!((latent(&model.layers[0]).scale - factor * factor / 24_f32.sqrt()).abs() < 1e-6);
}

#[test]
fn layers_that_draft_ahead_are_passed_over() {
    let with_draft = small()
        .set("deepseek2.block_count", 3_u32)
        .set("deepseek2.nextn_predict_layers", 1_u32)
        .tensor("blk.2.attn_norm.weight", &[64], TensorType::F32)
        .tensor("blk.2.nextn.eh_proj.weight", &[128, 64], TensorType::F32);
    let model = parse(&with_draft).unwrap();
    assert_eq!((model.layers.len(), model.tensors.len()), (2, parse(&small()).unwrap().tensors.len()));
    refused(&with_draft.clone().set("deepseek2.nextn_predict_layers", 3_u32), "nextn_predict_layers");
    refused(&with_draft.set("deepseek2.nextn_predict_layers", 0_u32), "missing tensors");
    refused(&small().tensor("blk.2.attn_norm.weight", &[64], TensorType::F32), "left-over tensors");
}

#[test]
fn bad_files_are_refused_by_name() {
    let set = |key: &str, count: u32| small().set(&format!("deepseek2.{key}"), count);
    // Matrices both joined and apart, where only the keys of the former are missing.
    refused(&small().tensor("blk.0.attn_kv_b.weight", &[32, 128], TensorType::F32), "attention.key_length");
    refused(&set("attention.key_length_mla", 8), "key_length_mla");
    refused(&set("rope.dimension_count", 7), "an even number");
    refused(&set("attention.kv_lora_rank", 48), "attn_kv_a_mqa");
    refused(&set("expert_gating_func", 5), "1 (softmax), 2 (sigmoid)");
    refused(&set("expert_shared_count", 2), "ffn_gate_shexp");
    refused(&set("leading_dense_block_count", 3), "leading_dense_block_count");
    refused(&small().set("deepseek2.rope.scaling.factor", 4.0_f32), "rope.scaling.type");
}
