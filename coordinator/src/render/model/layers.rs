//! Layers in words.

use qmesh_models::spec::{
    Activation, AttentionSpec, BlockIndexerSpec, DeltaGates, ExpertsSpec, Ffn, GatedDeltaSpec, IndexerSpec, KvSource,
    LatentQueries, LatentSpec, LayerSpec, Mixer, OutputGate, Positions, RopePairing, RopeScaling, Scoring,
    StateSpaceSpec, Window,
};

/// What its first half computes.
pub(super) fn mixer(mixer: &Mixer) -> String {
    match mixer {
        Mixer::Attention(attention) => {
            let AttentionSpec { heads, kv_heads, head_dim, .. } = attention;
            let gated = match attention.output_gate {
                OutputGate::None => "",
                OutputGate::WithQuery => ", gated",
                OutputGate::PerHead => ", each gated",
            };
            let blocks = attention.blocks.as_ref().map(|BlockIndexerSpec { block, used, .. }| {
                format!(", each to {used} blocks of {block} positions that it chooses")
            });
            let met = match attention.source {
                KvSource::Own => String::new(),
                KvSource::Layer(layer) => format!(" of layer {layer}"),
            };
            format!("{heads} heads, {kv_heads} KV heads of {head_dim}{met}{gated}{}", blocks.unwrap_or_default())
        }
        Mixer::GatedDelta(delta) => {
            let GatedDeltaSpec { key_heads, value_heads, head_dim, gates, .. } = delta;
            let decays = match gates {
                DeltaGates::Apart | DeltaGates::Together => "",
                DeltaGates::EachElement(_) => ", a decay for each element of a key",
            };
            format!("gated delta rule of {value_heads} heads, {key_heads} key heads of {head_dim}{decays}")
        }
        Mixer::Latent(latent) => {
            let LatentSpec { heads, queries, latent_dim, plain_dim, rope_dim, value_dim, positions, .. } = latent;
            let chosen = match positions {
                Positions::All => String::new(),
                Positions::AsBefore => ", to positions chosen before".to_owned(),
                Positions::Chosen(IndexerSpec { heads, head_dim, used, .. }) => {
                    format!(", to {used} positions chosen by {heads} heads of {head_dim}")
                }
            };
            let queries = match queries {
                LatentQueries::Direct => String::new(),
                LatentQueries::Latent(rank) => format!(" from {rank}"),
            };
            format!(
                "latent, {heads} heads of {plain_dim} + {rope_dim} rotated{queries}, values of {value_dim}, over a latent of \
                 {latent_dim} + {rope_dim}{chosen}"
            )
        }
        Mixer::StateSpace(space) => {
            let StateSpaceSpec { heads, head_dim, groups, state_size, .. } = space;
            format!("state space of {heads} heads of {head_dim} by {state_size} in {groups} groups")
        }
        Mixer::None => "none".to_owned(),
    }
}

/// How far back a layer attends, where it does.
pub(super) fn window(mixer: &Mixer) -> Option<String> {
    match mixer {
        Mixer::Attention(AttentionSpec { window: Window::Full, .. }) | Mixer::Latent(_) => Some("full".to_owned()),
        Mixer::Attention(AttentionSpec { window: Window::Sliding(width), .. }) => Some(format!("sliding {width}")),
        Mixer::Attention(AttentionSpec { window: Window::Chunked(width), .. }) => Some(format!("chunks of {width}")),
        Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => None,
    }
}

/// How it rotates by position.
pub(super) fn rope(layer: &LayerSpec) -> String {
    let Some(rope) = layer.rope() else { return "none".to_owned() };
    let pairing = match rope.pairing {
        RopePairing::Interleaved => "interleaved",
        RopePairing::Halves => "halves",
    };
    let scaling = match rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear(factor) => format!(", positions / {factor}"),
        RopeScaling::Factors => ", scaled by factors".to_owned(),
        RopeScaling::LongRope { original } => {
            format!(", scaled by other factors beyond {original} positions (LongRoPE)")
        }
        RopeScaling::Yarn { factor, original, .. } => format!(", {factor} times {original} positions (YaRN)"),
    };
    format!("base {}, {} dimensions in {pairing}{scaling}", rope.base, rope.dims)
}

/// What its second half computes.
pub(super) fn ffn(ffn: &Ffn) -> String {
    match *ffn {
        Ffn::Gated { inner, activation, .. } => format!("gated {inner}, {}", name(activation)),
        Ffn::Plain { inner, activation, .. } => format!("plain {inner}, {}", name(activation)),
        Ffn::Experts(ref experts) => mixture(experts),
        Ffn::Both { inner, ref experts } => format!("gated {inner} beside {}", mixture(experts)),
        Ffn::None => "none".to_owned(),
    }
}

fn mixture(experts: &ExpertsSpec) -> String {
    let ExpertsSpec { count, used, inner, latent, activation, ref routing, shared, .. } = *experts;
    let by = match routing.scoring {
        Scoring::Softmax | Scoring::SoftmaxOfUsed => "",
        Scoring::Sigmoid => " by sigmoid",
        Scoring::SqrtSoftplus => " by root of softplus",
    };
    let groups = routing.groups.map(|groups| format!(" in {} of {} groups", groups.used, groups.count));
    let shared = shared.map(|shared| format!(", and a shared one of {}", shared.inner)).unwrap_or_default();
    let groups = groups.unwrap_or_default();
    let latent = latent.map(|width| format!(" over a latent of {width}")).unwrap_or_default();
    format!("{used} of {count} experts{groups}{by} of {inner}{latent}, {}{shared}", name(activation))
}

fn name(activation: Activation) -> String {
    match activation {
        Activation::Silu => "SiLU".to_owned(),
        Activation::GeluTanh => "GELU".to_owned(),
        Activation::SiluClamped => "clamped SiLU".to_owned(),
        Activation::SiluLimited(limit) => format!("SiLU up to {limit}"),
        Activation::ReluSquared => "squared ReLU".to_owned(),
    }
}
