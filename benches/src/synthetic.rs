//! Models made up to time one tensor type and shape: a shard of gated layers without embedding and head.

use std::{fmt, str::FromStr};

use qmesh_engine::{error::EngineError, shard::TensorSource};
use qmesh_models::{
    spec::{
        Activation, AttentionSpec, Bias, Ffn, HeadMatrix, HeadSpec, LayerIndex, LayerSpec, LayerTensor, ModelSpec,
        NormKind, NormPlacement, NormSpec, QkNorm, Rope, RopePairing, RopeScaling, Sinks, TensorRole, TensorSpec,
        Window,
    },
    tensor::TensorType,
};

/// A layer's shape: gate and up take `hidden` elements to `inner` ones, down takes them back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
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

/// A model of `layers` layers with matrices of `dtype`, and one layer more at each end, so that the shard 1..=`layers`
/// neither embeds nor samples. `None` where rows of that width cannot be of that type.
pub fn spec(dtype: TensorType, shape: Shape, layers: usize) -> Option<ModelSpec> {
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
        qkv_bias: Bias::None,
        output_bias: Bias::None,
    };
    let ffn = Ffn::Gated { inner: shape.inner, activation: Activation::Silu, bias: Bias::None };
    let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5 };
    let layer = LayerSpec { attention, ffn, norms: NormPlacement::Pre, norm, residual_scale: 1.0 };
    Some(ModelSpec {
        name: format!("{dtype} {shape}"),
        family: "synthetic".into(),
        hidden: shape.hidden,
        vocab: 1,
        context: 4096,
        embedding_scale: 1.0,
        layers: vec![layer; layers + 2],
        head: HeadSpec { norm, matrix: HeadMatrix::Own, soft_cap: None, logit_scale: 1.0 },
        tensors,
    })
}

fn tensors(layer: usize, dtype: TensorType, Shape { hidden, inner }: Shape) -> Option<Vec<TensorSpec>> {
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
            fill(tensor.dtype, into);
        }
        Ok(())
    }
}

fn fill(dtype: TensorType, into: &mut [u8]) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    for bytes in into.chunks_mut(8) {
        // Xorshift: fast, and random enough to time with.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.copy_from_slice(&state.to_le_bytes()[..bytes.len()]);
    }
    // Where the floats of a block stand; random ones would be infinite here and there, and too small to be normal.
    let (floats, exponent): (&[usize], Exponent) = match dtype {
        TensorType::F32 => (&[2], Exponent::Float),
        TensorType::BF16 => (&[0], Exponent::Float),
        TensorType::F16 => (&[0], Exponent::Half),
        TensorType::MXFP4 => (&[0], Exponent::Byte),
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => (&[0], Exponent::Half),
        TensorType::IQ4NL | TensorType::IQ4XS => (&[0], Exponent::Half),
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => (&[0, 2], Exponent::Half),
        TensorType::Q2K => (&[80, 82], Exponent::Half),
        TensorType::Q3K => (&[108], Exponent::Half),
        TensorType::Q6K => (&[208], Exponent::Half),
    };
    for block in into.chunks_exact_mut(dtype.block_bytes()) {
        for &at in floats {
            let float = exponent.tame(u16::from_le_bytes([block[at], block[at + 1]]));
            block[at..at + 2].copy_from_slice(&float.to_le_bytes());
        }
    }
}

/// Where the exponent is in the two bytes of a float, or in its upper two.
#[derive(Clone, Copy)]
enum Exponent {
    /// Eight bits behind the sign: BF16, and the upper half of F32.
    Float,
    /// Five bits behind the sign.
    Half,
    /// The first byte, which is all of the float.
    Byte,
}

impl Exponent {
    /// The float with its own sign and mantissa, between 2⁻⁹ and 2⁻⁸.
    fn tame(self, bits: u16) -> u16 {
        match self {
            Self::Float => bits & 0x807F | (127 - 9) << 7,
            Self::Half => bits & 0x83FF | (15 - 9) << 10,
            Self::Byte => bits & 0xFF00 | (127 - 9),
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = text.split_once('x').and_then(|(hidden, inner)| {
            let (hidden, inner) = (hidden.parse().ok()?, inner.parse().ok()?);
            (hidden > 0 && inner > 0).then_some(Self { hidden, inner })
        });
        shape.ok_or_else(|| "give a shape as KxN, such as 1536x8960".into())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.hidden, self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!("576x1536".parse(), Ok(Shape { hidden: 576, inner: 1536 }));
        assert!(["576", "0x5", "5x", "ax5"].iter().all(|text| text.parse::<Shape>().is_err()));
    }

    #[test]
    fn floats_are_normal() {
        for dtype in [TensorType::F32, TensorType::F16, TensorType::BF16] {
            let mut bytes = vec![0; dtype.block_bytes() * 512];
            fill(dtype, &mut bytes);
            for block in bytes.chunks_exact(dtype.block_bytes()) {
                let upper = u16::from_le_bytes([block[block.len() - 2], block[block.len() - 1]]);
                let exponent = if dtype == TensorType::F16 { (upper >> 10 & 31) + 112 } else { upper >> 7 & 255 };
                assert_eq!(exponent, 118, "{dtype}");
            }
        }
        assert!(spec(TensorType::Q4K, Shape { hidden: 576, inner: 1536 }, 1).is_none());
    }
}
