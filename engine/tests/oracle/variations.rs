//! What no family combines: the specs of golden models, changed here and there.

use qmesh_models::spec::{
    Activation, AttentionSpec, ExpertForm, ExpertGroups, ExpertsSpec, Ffn, LayerSpec, LayerTensor, Mixer, ModelSpec,
    NormPlacement, QkNorm, Rope, RopePairing, RopeScaling, Routing, Scoring, SharedGate, Temperature, TensorRole,
    Weighed, Weighting, Window,
};

use super::{Fed, LAYER, Report, Rounding, compare, golden};

#[test]
fn what_no_family_combines_is_the_oracles() {
    let golden = golden();
    let mut report = Report::default();
    for (name, what, change) in VARIATIONS {
        let (_, file) = golden.iter().find(|(other, _)| other == name).unwrap();
        let mut spec = file.spec().clone();
        change(&mut spec);
        let plain = compare(file.spec(), file, &[], Rounding::ENGINE, Fed::Own);
        let cuts: Vec<usize> = (1..spec.layers.len()).collect();
        let distances = compare(&spec, file, &cuts, Rounding::ENGINE, Fed::Engine);
        report.hold(&format!("{name}: {what}"), &distances, LAYER);
        assert_ne!(plain.last, distances.last, "{name}: {what} changes nothing");
    }
    report.check(VARIATIONS.len());
}

/// What a spec is changed to.
type Change = fn(&mut ModelSpec);

/// A golden model, what is changed, and how.
const VARIATIONS: [(&str, &str, Change); 28] = [
    ("llama", "scales", |spec| {
        (spec.embedding_scale, spec.head.logit_scale) = (3.0, 0.2);
        spec.layers.iter_mut().for_each(|layer| layer.residual_scale = 0.4);
    }),
    ("llama", "soft caps", |spec| {
        spec.head.soft_cap = Some(1.5);
        each_attention(spec, |attention| (attention.scale, attention.soft_cap) = (0.9, Some(0.5)));
    }),
    ("llama", "windows", |spec| {
        let windows = [Window::Sliding(1), Window::Sliding(20), Window::Sliding(66)];
        spec.layers
            .iter_mut()
            .filter_map(LayerSpec::attention_mut)
            .zip(windows)
            .for_each(|(a, window)| a.window = window);
    }),
    ("llama", "chunks", |spec| {
        let windows = [Window::Chunked(1), Window::Chunked(20), Window::Chunked(64)];
        spec.layers
            .iter_mut()
            .filter_map(LayerSpec::attention_mut)
            .zip(windows)
            .for_each(|(a, window)| a.window = window);
    }),
    ("llama", "queries that grow", |spec| {
        each_attention(spec, |a| a.temperature = Some(Temperature { scale: 0.7, offset: 1, length: 20 }));
    }),
    ("llama", "norms without gains", |spec| {
        each_attention(spec, |attention| attention.qk_norm = QkNorm::PerHeadRotatedBare);
    }),
    ("llama", "no positions", |spec| each_attention(spec, |attention| attention.rope = None)),
    ("llama", "some elements in halves", |spec| {
        each_rope(spec, |rope| (rope.pairing, rope.dims) = (RopePairing::Halves, 6));
    }),
    ("llama", "positions divided", |spec| {
        each_rope(spec, |rope| (rope.scaling, rope.magnitude, rope.base) = (RopeScaling::Linear(3.0), 1.3, 500.0));
    }),
    ("llama", "YaRN", |spec| {
        let yarn = RopeScaling::Yarn { factor: 8.0, original: 64, beta_fast: 4.0, beta_slow: 0.5 };
        each_rope(spec, |rope| (rope.scaling, rope.dims) = (yarn.clone(), 12));
    }),
    ("llama", "a clamped gate", |spec| each_activation(spec, Activation::SiluClamped)),
    ("llama", "a limited gate", |spec| each_activation(spec, Activation::SiluLimited(0.05))),
    ("qwen2", "a gate with GELU", |spec| each_activation(spec, Activation::GeluTanh)),
    ("starcoder2", "no gate, with squared ReLU", |spec| each_activation(spec, Activation::ReluSquared)),
    ("qwen3moe", "experts without gates", |spec| {
        without(spec, &[LayerTensor::ExpertGates]);
        each_mixture(spec, |experts| (experts.form, experts.activation) = (ExpertForm::Plain, Activation::ReluSquared));
    }),
    ("llama", "layers of one half", |spec| {
        use LayerTensor::{AttnNorm, AttnOutput, Down, FfnNorm, Gate, K, Q, Up, V};
        let halves = [&[AttnNorm, Q, K, V, AttnOutput][..], &[FfnNorm, Gate, Up, Down]];
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            match index % 2 {
                0 => layer.mixer = Mixer::None,
                _ => layer.ffn = Ffn::None,
            }
        }
        spec.tensors.retain(|tensor| match tensor.role {
            TensorRole::Layer(layer, part) => !halves[layer.0 % 2].contains(&part),
            TensorRole::Embedding
            | TensorRole::LayerEmbeddings
            | TensorRole::LayerProjection
            | TensorRole::LayerProjectionNorm
            | TensorRole::OutputNorm
            | TensorRole::OutputNormBias
            | TensorRole::Output
            | TensorRole::RopeFactors
            | TensorRole::RopeFactorsLong
            | TensorRole::RopeFactorsShort => true,
        });
    }),
    ("llama", "no gate", |spec| {
        without(spec, &[LayerTensor::Gate]);
        for layer in &mut spec.layers {
            let Ffn::Gated { inner, activation, bias } = layer.ffn else { panic!("it has gates") };
            layer.ffn = Ffn::Plain { inner, activation, bias };
        }
    }),
    ("starcoder2", "no gate, with SiLU", |spec| each_activation(spec, Activation::Silu)),
    ("gemma2", "norms only after", |spec| {
        without(spec, &[LayerTensor::AttnNorm, LayerTensor::FfnNorm]);
        spec.layers.iter_mut().for_each(|layer| layer.norms = NormPlacement::Post);
    }),
    ("qwen3", "large epsilons", |spec| {
        spec.head.norm.eps = 0.1;
        spec.layers.iter_mut().for_each(|layer| layer.norm.eps = 0.1);
    }),
    ("mixtral", "weights of all scores", |spec| {
        each_mixture(spec, |experts| {
            experts.used = 3;
            experts.routing = Routing { weight_scale: 1.7, ..Routing::plain(Scoring::Softmax, Weighting::AsScored) };
        });
    }),
    ("qwen3moe", "groups of experts", |spec| {
        let groups = Some(ExpertGroups { count: 4, used: 2 });
        each_routing(spec, |routing| (routing.scoring, routing.groups) = (Scoring::SqrtSoftplus, groups));
    }),
    ("mixtral", "weights on inputs", |spec| {
        each_routing(spec, |routing| (routing.scoring, routing.weighed) = (Scoring::Sigmoid, Weighed::Input));
    }),
    ("qwen2moe", "one expert beside the shared one", |spec| {
        each_mixture(spec, |experts| (experts.used, experts.routing.scoring) = (1, Scoring::SoftmaxOfUsed));
    }),
    ("qwen2moe", "a shared expert without a gate", |spec| {
        without(spec, &[LayerTensor::SharedRouter]);
        each_mixture(spec, |experts| experts.shared.iter_mut().for_each(|shared| shared.gate = SharedGate::None));
    }),
    ("minimax-m3", "blocks of a page", |spec| {
        each_attention(spec, |a| {
            a.blocks.iter_mut().for_each(|blocks| (blocks.block, blocks.used, blocks.local) = (64, 1, 1));
        });
    }),
    ("minimax-m3", "odd blocks of which two are always chosen", |spec| {
        each_attention(spec, |a| {
            a.blocks.iter_mut().for_each(|blocks| (blocks.block, blocks.used, blocks.local) = (5, 4, 2));
        });
    }),
    ("gpt-oss", "caps beside sinks", |spec| {
        each_attention(spec, |attention| attention.soft_cap = Some(0.7));
        each_mixture(spec, |experts| experts.activation = Activation::GeluTanh);
    }),
];

fn each_attention(spec: &mut ModelSpec, change: impl Fn(&mut AttentionSpec)) {
    spec.layers.iter_mut().filter_map(LayerSpec::attention_mut).for_each(change);
}

fn each_rope(spec: &mut ModelSpec, change: impl Fn(&mut Rope)) {
    each_attention(spec, |attention| attention.rope.iter_mut().for_each(&change));
}

fn each_mixture(spec: &mut ModelSpec, change: impl Fn(&mut ExpertsSpec)) {
    for layer in &mut spec.layers {
        let Ffn::Experts(experts) = &mut layer.ffn else { panic!("it has experts") };
        change(experts);
    }
}

fn each_routing(spec: &mut ModelSpec, change: impl Fn(&mut Routing)) {
    each_mixture(spec, |experts| change(&mut experts.routing));
}

fn each_activation(spec: &mut ModelSpec, to: Activation) {
    for layer in &mut spec.layers {
        match &mut layer.ffn {
            Ffn::Gated { activation, .. } | Ffn::Plain { activation, .. } => *activation = to,
            Ffn::Experts(experts) | Ffn::Both { experts, .. } => experts.activation = to,
            Ffn::None => {}
        }
    }
}

/// Takes tensors out of every layer.
fn without(spec: &mut ModelSpec, tensors: &[LayerTensor]) {
    spec.tensors.retain(|tensor| !matches!(tensor.role, TensorRole::Layer(_, of_layer) if tensors.contains(&of_layer)));
}
