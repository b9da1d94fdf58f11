//! Nemotron-H, dense and with experts: each layer is one half alone, a state space, attention that knows no positions, or a
//! feed-forward half of two products.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::{HEADS_MAX, Metadata, WIDTH_MAX},
    state_space,
};
use crate::spec::{Activation, ExpertForm, ExpertsSpec, Ffn, Mixer, NormKind, NormSpec, RopePairing, Routing, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    // Nothing is rotated, and no half has a gate.
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::ReluSquared };
    let (norm, halves) = (norm(m)?, feed_forward(m)?);
    let mut layers = dense::layers_with(m, &plain, norm, |layer| halves[layer].clone())?;
    let (space, with_state) = (state_space::spec(m)?, dense::without_kv_heads(m, layers.len())?);
    for (index, layer) in layers.iter_mut().enumerate() {
        if layer.ffn != Ffn::None {
            layer.mixer = Mixer::None;
        } else if with_state[index] {
            layer.mixer = Mixer::StateSpace(state_space::of_layer(m, &space, index));
        }
    }
    dense::attentions(&mut layers).for_each(|attention| attention.rope = None);
    Ok(Decoder::plain(norm, layers))
}

/// An RMS norm, whose ε may stand where that of a layer norm does.
fn norm(m: &Metadata<'_>) -> Result<NormSpec, ModelError> {
    if m.has("attention.layer_norm_rms_epsilon") {
        return dense::rms_norm(m);
    }
    Ok(NormSpec { kind: NormKind::Rms, ..dense::layer_norm(m)? })
}

/// The feed-forward half of each layer: none where it has no width.
fn feed_forward(m: &Metadata<'_>) -> Result<Vec<Ffn>, ModelError> {
    let widths = m.counts("feed_forward_length", m.layer_count()?, 0..=WIDTH_MAX)?;
    if m.count_or("expert_count", 0, 0..=HEADS_MAX)? > 0 {
        return mixtures(m, &widths);
    }
    let half = |(layer, inner): (usize, usize)| match inner {
        0 => Ffn::None,
        inner => {
            let bias = dense::bias(m, layer, "ffn_down.bias");
            Ffn::Plain { inner, activation: Activation::ReluSquared, bias }
        }
    };
    Ok(widths.into_iter().enumerate().map(half).collect())
}

/// Experts on the layers that have a width. How many are used, and how wide they are, may be each layer's own.
fn mixtures(m: &Metadata<'_>, widths: &[usize]) -> Result<Vec<Ffn>, ModelError> {
    const WIDTH: &str = "expert_feed_forward_length";
    let (layers, count) = (widths.len(), m.count("expert_count", 1..=HEADS_MAX)?);
    let used = m.counts("expert_used_count", layers, 0..=count)?;
    let own = if m.has(WIDTH) { m.counts(WIDTH, layers, 0..=WIDTH_MAX)? } else { vec![0; layers] };
    let latent = match m.count_or("moe_latent_size", 0, 0..=WIDTH_MAX)? {
        0 => None,
        width => Some(width),
    };
    let routing = Routing::plain(Scoring::Sigmoid, experts::weighting(m)?);
    let half = |layer: usize| {
        let inner = if own[layer] > 0 { own[layer] } else { widths[layer] / used[layer].max(1) };
        if widths[layer] == 0 {
            return Ok(Ffn::None);
        }
        let mixture = experts::of(m, [count, used[layer]], inner, Activation::ReluSquared, routing.clone())?;
        let shared = experts::shared_by_width(m, mixture.activation)?;
        let mixture = ExpertsSpec { form: ExpertForm::Plain, latent, shared, ..mixture };
        Ok(Ffn::Experts(experts::in_layer(m, &mixture, layer)))
    };
    (0..layers).map(half).collect()
}
