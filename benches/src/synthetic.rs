//! Models made up to time one tensor type and shape: a shard of gated layers without embedding and head.

use std::{fmt, str::FromStr};

use qmesh_engine::{error::EngineError, shard::TensorSource};
use qmesh_models::{
    spec::{
        Activation, AttentionSpec, Bias, Ffn, HeadMatrix, HeadSpec, KvSource, LayerIndex, LayerSpec, LayerTensor,
        Mixer, ModelSpec, NormKind, NormPlacement, NormSpec, OutputGate, OutputScale, QkNorm, Rope, RopePairing,
        RopeScaling, Sinks, TensorRole, TensorSpec, Values, Window,
    },
    tensor::TensorType,
};

use crate::random_blocks::RandomBlocks;

/// A layer's shape: gate and up take `hidden` elements to `inner` ones, down takes them back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LayerShape {
    /// Width of the hidden state.
    pub hidden: usize,
    /// Width between the products.
    pub inner: usize,
}

/// Fills tensors with the same bytes each time: random weights under small, normal scales.
#[derive(Debug)]
pub struct Synthetic;

/// Query heads, and how long each is: with one key/value head the attention's matrices stay a small share, and a row of
/// their width is one block of the largest type.
const HEADS: usize = 4;
const HEAD_DIM: usize = 64;

/// What all bytes follow from.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
/// Scales lie between 2^-9 and 2^-8.
const SCALE_EXPONENT: u16 = 9;

/// A model of `layers` layers with matrices of `dtype`, and one layer more at each end, so that the shard 1..=`layers`
/// neither embeds nor samples. `None` where rows of that width cannot be of that type.
pub fn spec(dtype: TensorType, shape: LayerShape, layers: usize) -> Option<ModelSpec> {
    let tensors = (1..=layers).map(|layer| tensors(layer, dtype, shape)).collect::<Option<Vec<_>>>()?.concat();
    let scaling = RopeScaling::None;
    let rope = Rope { pairing: RopePairing::Halves, dims: HEAD_DIM, base: 10_000.0, scaling, magnitude: 1.0 };
    let attention = AttentionSpec {
        heads: HEADS,
        kv_heads: 1,
        head_dim: HEAD_DIM,
        scale: 0.125,
        soft_cap: None,
        sinks: Sinks::None,
        window: Window::Full,
        rope: Some(rope),
        qk_norm: QkNorm::None,
        temperature: None,
        source: KvSource::Own,
        values: Values::Own,
        blocks: None,
        qkv_bias: Bias::None,
        output_bias: Bias::None,
        output_gate: OutputGate::None,
    };
    let ffn = Ffn::Gated { inner: shape.inner, activation: Activation::Silu, bias: Bias::None };
    let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5 };
    let layer = LayerSpec {
        mixer: Mixer::Attention(attention),
        ffn,
        norms: NormPlacement::Pre,
        norm,
        residual_scale: 1.0,
        output_scale: OutputScale::None,
    };
    Some(ModelSpec {
        name: format!("{dtype} {shape}"),
        family: "synthetic".into(),
        hidden: shape.hidden,
        vocab: 1,
        context: 4096,
        embedding_scale: 1.0,
        layer_inputs: None,
        layers: vec![layer; layers + 2],
        head: HeadSpec { norm, matrix: HeadMatrix::Own, soft_cap: None, logit_scale: 1.0 },
        tensors,
    })
}

fn tensors(layer: usize, dtype: TensorType, LayerShape { hidden, inner }: LayerShape) -> Option<Vec<TensorSpec>> {
    use LayerTensor::{AttnNorm, AttnOutput, Down, FfnNorm, Gate, K, Q, Up, V};
    let attended = HEADS * HEAD_DIM;
    let places = [
        (AttnNorm, 1, hidden, TensorType::F32),
        (Q, attended, hidden, dtype),
        (K, HEAD_DIM, hidden, dtype),
        (V, HEAD_DIM, hidden, dtype),
        (AttnOutput, hidden, attended, dtype),
        (FfnNorm, 1, hidden, TensorType::F32),
        (Gate, inner, hidden, dtype),
        (Up, inner, hidden, dtype),
        (Down, hidden, inner, dtype),
    ];
    let tensor = |(place, rows, cols, dtype): (LayerTensor, usize, usize, TensorType)| {
        let bytes = dtype.row_bytes(cols)?.checked_mul(rows)? as u64;
        let role = TensorRole::Layer(LayerIndex(layer), place);
        Some(TensorSpec { role, name: format!("{layer}.{place:?}"), rows, cols, dtype, part: 0, offset: 0, bytes })
    };
    places.into_iter().map(tensor).collect()
}

impl TensorSource for Synthetic {
    fn read(&self, tensor: &TensorSpec, into: &mut [u8]) -> Result<(), EngineError> {
        if tensor.rows == 1 {
            into.as_chunks_mut::<4>().0.fill(1f32.to_le_bytes());
        } else {
            RandomBlocks::new(SEED).fill(tensor.dtype, SCALE_EXPONENT, into);
        }
        Ok(())
    }
}

impl FromStr for LayerShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = text.split_once('x').and_then(|(hidden, inner)| {
            let (hidden, inner) = (hidden.parse().ok()?, inner.parse().ok()?);
            (hidden > 0 && inner > 0).then_some(Self { hidden, inner })
        });
        shape.ok_or_else(|| "give a shape as KxN, such as 1536x8960".into())
    }
}

impl fmt::Display for LayerShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.hidden, self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!("576x1536".parse(), Ok(LayerShape { hidden: 576, inner: 1536 }));
        assert!(["576", "0x5", "5x", "ax5"].iter().all(|text| text.parse::<LayerShape>().is_err()));
    }

    #[test]
    fn a_shape_that_blocks_do_not_divide_has_no_model() {
        assert!(spec(TensorType::Q4K, LayerShape { hidden: 576, inner: 1536 }, 1).is_none());
    }
}
