//! Families whose layers have a state.

use super::*;
use crate::spec::{
    DeltaGates, DeltaInputs, DeltaOutputGate, ExpertForm, GatedDeltaSpec, KeySharing, LatentQueries, Mixer, OutputGate,
    StateSpaceSpec, TensorSpec, Weighting,
};

#[test]
fn three_layers_of_four_have_a_state_and_the_fourth_is_gated() {
    for (name, gates, sharing) in [
        ("qwen3next", DeltaGates::Together, KeySharing::Adjacent),
        ("qwen35", DeltaGates::Apart, KeySharing::InTurn),
        ("qwen35moe", DeltaGates::Apart, KeySharing::InTurn),
    ] {
        let model = golden(name);
        let [delta @ .., last] = &model.layers[..] else { panic!("{name} has layers") };
        let (inputs, output_gate) = (DeltaInputs::Together, DeltaOutputGate::Silu);
        let expected =
            GatedDeltaSpec { key_heads: 2, value_heads: 4, head_dim: 16, taps: 4, sharing, gates, inputs, output_gate };
        assert!(delta.iter().all(|layer| layer.mixer == Mixer::GatedDelta(expected.clone())), "{name}");
        assert_eq!((delta.len(), model.has_states()), (3, true));
        let attention = attention(last);
        assert_eq!((attention.output_gate, attention.qk_norm), (OutputGate::WithQuery, QkNorm::PerHead), "{name}");
        assert_eq!((attention.query_outputs(), rope(last).dims), (2 * 4 * 16, 8));
        assert_eq!(
            matches!(last.ffn, Ffn::Experts(ExpertsSpec { shared: Some(SharedExpert { inner: 16, .. }), .. })),
            name != "qwen35"
        );
    }
    let mut listed = WithStates::HEADER.header();
    listed = listed.set("qwen35.attention.recurrent_layers", [false, true].as_slice());
    let states: Vec<_> = parse(&listed).unwrap().layers.iter().map(|layer| layer.mixer.has_state()).collect();
    assert_eq!(states, [false, true], "the list counts, where there is one");
}

#[test]
fn kimi_linear_has_states_that_forget_each_element_and_latents_without_positions() {
    let model = golden("kimi-linear");
    let [delta @ .., last] = &model.layers[..] else { panic!("it has layers") };
    let expected = GatedDeltaSpec {
        key_heads: 4,
        value_heads: 4,
        head_dim: 16,
        taps: 4,
        sharing: KeySharing::Adjacent,
        gates: DeltaGates::EachElement(16),
        inputs: DeltaInputs::Apart,
        output_gate: DeltaOutputGate::SigmoidNarrow(16),
    };
    assert!(delta.iter().all(|layer| layer.mixer == Mixer::GatedDelta(expected.clone())));
    assert_eq!((delta.len(), expected.row_len()), (3, 3 * 64 + 64 + 4));
    let Mixer::Latent(latent) = &last.mixer else { panic!("{:?}", last.mixer) };
    assert_eq!(
        (latent.queries, &latent.rope, latent.rope_dim, latent.plain_dim),
        (LatentQueries::Direct, &None, 8, 16)
    );
    assert!(matches!(model.layers[0].ffn, Ffn::Gated { .. }), "the first is dense");
    let routing = &last.experts().unwrap().routing;
    assert_eq!(
        (routing.weighting, routing.choice_bias, routing.weight_scale),
        (Weighting::Normalised, Bias::Present, 1.8)
    );
    let taps = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), LayerTensor::KeyTaps)).unwrap();
    assert_eq!((taps.rows, taps.cols), (64, 4), "a row of factors for each channel");
}

#[test]
fn states_of_other_shapes_are_refused_by_their_key() {
    let refused_with = |key: &'static str, value: Value, message: &str| {
        refused(&WithStates { key, value: Some(value) }.header(), message);
    };
    refused_with("ssm.state_size", 24_u32.into(), "ssm.state_size\" is 24, which is not supported");
    refused_with("ssm.time_step_rank", 3_u32.into(), "ssm.time_step_rank\" is 3, expected a multiple of the 2");
    refused_with(
        "ssm.inner_size",
        128_u32.into(),
        "ssm.inner_size\" is 128, which is not supported; supported: 4 heads",
    );
    refused_with("ssm.conv_kernel", 1_u32.into(), "ssm.conv_kernel\" is 1, expected 2 to");
    // Pairs 3 and on would have the fourth position, which is 0 in a text.
    let short = [1_u32, 1, 1, 5];
    refused_with("rope.dimension_sections", short.as_slice().into(), "rope.dimension_sections\" is [1, 1, 1, 5]");
    refused_with("rope.dimension_sections", [0_u32; 4].as_slice().into(), "rope.dimension_sections\" is [0, 0, 0, 0]");
    refused_with("rope.dimension_sections", [3_u32; 3].as_slice().into(), "an array of 3");
}

#[test]
fn layers_without_key_heads_have_a_state_space() {
    let model = golden("granitehybrid");
    let expected = StateSpaceSpec { heads: 4, head_dim: 16, groups: 2, state_size: 16, taps: 4, bias: Bias::Present };
    let [spaces @ .., last] = &model.layers[..] else { panic!("it has layers") };
    assert!(spaces.iter().all(|layer| layer.mixer == Mixer::StateSpace(expected.clone())));
    assert_eq!((spaces.len(), attention(last).kv_heads, last.rope().is_none()), (3, 2, true));
    assert_eq!((last.residual_scale, attention(last).scale, model.embedding_scale), (0.6, 0.2, 2.0));
    let place = |tensor| {
        let found = model.tensors.iter().find(|t| t.role == TensorRole::Layer(LayerIndex(1), tensor)).unwrap();
        (found.name.as_str(), found.rows)
    };
    let (gate, input, steps) =
        (place(LayerTensor::StateGate), place(LayerTensor::StateInput), place(LayerTensor::TimeStep));
    assert_eq!((gate.1, input.1, steps.1), (64, 64 + 2 * 2 * 16, 4));
    assert!([gate, input, steps].iter().all(|(name, _)| *name == "blk.1.ssm_in.weight"));
    // Where there is no state, every layer has key heads.
    let none = SMALL.header_without("attention.head_count_kv").set("llama.attention.head_count_kv", 0_u32);
    refused(&none, "head_count_kv\" is 0, expected 1 to");
}

#[test]
fn layers_of_one_half_have_its_tensors_alone() {
    for (name, latent) in [("nemotron_h", None), ("nemotron_h_moe", None), ("nemotron_h_moe-latent", Some(16))] {
        let model = golden(name);
        let halves: Vec<_> =
            model.layers.iter().map(|layer| (layer.mixer.has_state(), layer.ffn == Ffn::None)).collect();
        assert_eq!(halves, [(true, true), (false, false), (false, true), (true, true), (false, false)], "{name}");
        assert!(attention(&model.layers[2]).rope.is_none());
        assert_eq!(model.layers[1].mixer, Mixer::None);
        let of_layer = |layer| {
            let of = |tensor: &&TensorSpec| matches!(tensor.role, TensorRole::Layer(LayerIndex(of), _) if of == layer);
            model.tensors.iter().filter(of).map(|tensor| tensor.role).collect::<Vec<_>>()
        };
        assert!(of_layer(1).contains(&TensorRole::Layer(LayerIndex(1), LayerTensor::FfnNorm)), "{name}");
        assert!(of_layer(2).contains(&TensorRole::Layer(LayerIndex(2), LayerTensor::AttnNorm)), "{name}");
        match &model.layers[4].ffn {
            Ffn::Plain { inner, activation, .. } => assert_eq!((*inner, *activation), (48, Activation::ReluSquared)),
            Ffn::Experts(experts) => {
                assert_eq!((experts.form, experts.latent, experts.inner), (ExpertForm::Plain, latent, 16), "{name}");
                assert_eq!((experts.routing.choice_bias, experts.routing.weight_scale), (Bias::Present, 2.5), "{name}");
            }
            other @ (Ffn::Gated { .. } | Ffn::Both { .. } | Ffn::None) => panic!("{name}: {other:?}"),
        }
    }
}

/// A small model of layers with states, but for one key.
struct WithStates {
    key: &'static str,
    value: Option<Value>,
}

impl WithStates {
    const HEADER: Self = Self { key: "", value: None };

    /// Two layers: which of them have a state, a list may say; without one, both have.
    fn header(&self) -> GgufWriter {
        let mut writer = GgufWriter::new("qwen35");
        let keys: [(&str, Value); 15] = [
            ("block_count", 2_u32.into()),
            ("context_length", 8192_u32.into()),
            ("embedding_length", 32_u32.into()),
            ("feed_forward_length", 48_u32.into()),
            ("attention.head_count", 4_u32.into()),
            ("attention.head_count_kv", 2_u32.into()),
            ("attention.layer_norm_rms_epsilon", 1e-6_f32.into()),
            ("attention.key_length", 16_u32.into()),
            ("rope.dimension_count", 16_u32.into()),
            ("rope.dimension_sections", [3_u32, 3, 2, 0].as_slice().into()),
            ("ssm.conv_kernel", 4_u32.into()),
            ("ssm.state_size", 16_u32.into()),
            ("ssm.group_count", 2_u32.into()),
            ("ssm.time_step_rank", 4_u32.into()),
            ("ssm.inner_size", 64_u32.into()),
        ];
        let own = self.value.clone().map(|value| (self.key, value));
        for (key, value) in keys.into_iter().filter(|(key, _)| *key != self.key).chain(own) {
            writer = writer.set(&format!("qwen35.{key}"), value);
        }
        let every: &[(&str, &[u64])] = &[
            ("attn_norm.weight", &[32]),
            ("post_attention_norm.weight", &[32]),
            ("ffn_gate.weight", &[32, 48]),
            ("ffn_up.weight", &[32, 48]),
            ("ffn_down.weight", &[48, 32]),
        ];
        let attention: &[(&str, &[u64])] = &[
            ("attn_q.weight", &[32, 128]),
            ("attn_k.weight", &[32, 32]),
            ("attn_v.weight", &[32, 32]),
            ("attn_q_norm.weight", &[16]),
            ("attn_k_norm.weight", &[16]),
            ("attn_output.weight", &[64, 32]),
        ];
        let state: &[(&str, &[u64])] = &[
            ("attn_qkv.weight", &[32, 128]),
            ("attn_gate.weight", &[32, 64]),
            ("ssm_alpha.weight", &[32, 4]),
            ("ssm_beta.weight", &[32, 4]),
            ("ssm_conv1d.weight", &[4, 128]),
            ("ssm_dt.bias", &[4]),
            ("ssm_a", &[4]),
            ("ssm_norm.weight", &[16]),
            ("ssm_out.weight", &[64, 32]),
        ];
        for (layer, own) in [attention, state].into_iter().enumerate() {
            for (name, ne) in every.iter().chain(own) {
                writer = writer.tensor(&format!("blk.{layer}.{name}"), ne, TensorType::F32);
            }
        }
        writer = writer.tensor("token_embd.weight", &[32, 64], TensorType::F32);
        writer.tensor("output_norm.weight", &[32], TensorType::F32)
    }
}
