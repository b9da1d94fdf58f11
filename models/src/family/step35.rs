//! Step 3.5: windows on most layers, whose heads are others and rotated whole, where the others rotate half of each; a gate for each
//! head of what it attends; a router of sigmoids; limits on the activations of some layers.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    experts,
    metadata::Metadata,
};
use crate::spec::{Activation, Ffn, OutputGate, QkNorm, RopePairing, Scoring};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Halves, rope_base: 10_000.0, activation: Activation::Silu };
    let mut mixture = experts::as_said(m, plain.activation, Scoring::Sigmoid)?;
    mixture.shared = experts::shared_by_width(m, plain.activation)?;
    let mut layers = experts::layers(m, &plain, &mixture)?;
    // No rule says which layers have one.
    m.gguf().booleans("step35.attention.sliding_window_pattern")?;
    let windowed = dense::windows(m, &mut layers, None, 1)?;
    let routed = limited(m, "swiglu_clamp_exp", layers.len())?;
    let whole = limited(m, "swiglu_clamp_shexp", layers.len())?;
    for (index, layer) in layers.iter_mut().enumerate() {
        match &mut layer.ffn {
            Ffn::Gated { activation, .. } => *activation = whole[index],
            Ffn::Experts(experts) => {
                experts.activation = routed[index];
                experts.shared.iter_mut().for_each(|shared| shared.activation = whole[index]);
            }
            Ffn::Plain { .. } | Ffn::Both { .. } | Ffn::None => {}
        }
        let Some(attention) = layer.attention_mut() else { continue };
        let has = |name: &str| m.has_tensor(&format!("blk.{index}.{name}.weight"));
        attention.qk_norm = if has("attn_q_norm") { QkNorm::PerHead } else { QkNorm::None };
        attention.output_gate = if has("attn_gate") { OutputGate::PerHead } else { OutputGate::None };
        if windowed[index] {
            dense::narrow(m, attention)?;
        } else if let Some(rope) = &mut attention.rope {
            rope.dims /= 2;
            if !rope.dims.is_multiple_of(2) {
                return Err(m.out_of_range("rope.dimension_count", 2 * rope.dims, "a multiple of 4".to_owned()));
            }
        }
    }
    Ok(Decoder::plain(dense::rms_norm(m)?, layers))
}

/// The activation of each layer, by the limits that `key` has.
fn limited(m: &Metadata<'_>, key: &'static str, layers: usize) -> Result<Vec<Activation>, ModelError> {
    // llama.cpp takes what is less for none.
    const LEAST: f32 = 1e-6;
    let limits = m.floats_or(key, layers, 0.0, 0.0..=1e6)?;
    let activation = |limit| if limit > LEAST { Activation::SiluLimited(limit) } else { Activation::Silu };
    Ok(limits.into_iter().map(activation).collect())
}
