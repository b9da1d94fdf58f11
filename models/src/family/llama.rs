//! Llama and what is shaped like it: Mistral, SmolLM, TinyLlama. Llama 3 brings its RoPE factors as a tensor.

use super::{
    Decoder, ModelError,
    dense::{self, Plain},
    metadata::Metadata,
    tensors,
};
use crate::spec::{Activation, Bias, RopePairing, RopeScaling};

pub(super) fn decoder(m: &Metadata<'_>) -> Result<Decoder, ModelError> {
    let plain = Plain { pairing: RopePairing::Interleaved, rope_base: 10_000.0, activation: Activation::Silu };
    let mut layers = dense::layers(m, &plain)?;
    for (i, layer) in layers.iter_mut().enumerate() {
        if m.has_tensor(&format!("blk.{i}.attn_q.bias")) {
            layer.attention.qkv_bias = Bias::Present;
        }
        if m.has_tensor(tensors::ROPE_FACTORS) {
            if let RopeScaling::Linear(factor) = layer.attention.rope.scaling {
                return Err(m.unsupported(
                    "rope.scaling.factor",
                    factor.to_string(),
                    "1 beside tensor \"rope_freqs.weight\"",
                ));
            }
            layer.attention.rope.scaling = RopeScaling::Factors;
        }
    }
    Ok(Decoder { embedding_scale: 1.0, norm_eps: dense::norm_eps(m)?, logit_cap: None, layers })
}
