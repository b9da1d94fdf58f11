//! One layer: x + scale · half(x) for its attention and for its feed-forward half, with norms before or after each.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{LayerIndex, LayerSpec, LayerTensor, Mixer, NormPlacement};

use crate::{
    attention::Attention,
    cache::LayerCache,
    error::OracleError,
    ffn::FeedForward,
    gated_delta::GatedDelta,
    norm::Norm,
    state_space::StateSpace,
    weights::{Weights, of_layer},
};

/// The weights of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    attention_norms: Norms,
    mixer: LayerMixer,
    ffn_norms: Norms,
    ffn: FeedForward,
    residual_scale: f32,
}

/// What mixes rows.
#[derive(Clone, Debug)]
enum LayerMixer {
    Attention(Attention),
    GatedDelta(GatedDelta),
    StateSpace(StateSpace),
}

/// The norms of one half.
#[derive(Clone, Debug)]
struct Norms {
    before: Option<Norm>,
    after: Option<Norm>,
}

impl Layer {
    /// Layer `index` of the model, which `spec` describes.
    pub(crate) fn open(
        weights: &Weights<'_>,
        index: LayerIndex,
        spec: &LayerSpec,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{AttnNorm, AttnNormBias, FfnNorm, FfnNormBias, PostAttnNorm, PostFfnNorm};
        Ok(Self {
            attention_norms: Norms::open(weights, index, spec, [AttnNorm, AttnNormBias], PostAttnNorm)?,
            mixer: match &spec.mixer {
                Mixer::Attention(attention) => {
                    LayerMixer::Attention(Attention::open(weights, index, attention, spec.norm.eps)?)
                }
                Mixer::GatedDelta(delta) => {
                    LayerMixer::GatedDelta(GatedDelta::open(weights, index, delta, spec.norm.eps)?)
                }
                Mixer::StateSpace(space) => {
                    LayerMixer::StateSpace(StateSpace::open(weights, index, space, spec.norm.eps)?)
                }
            },
            ffn_norms: Norms::open(weights, index, spec, [FfnNorm, FfnNormBias], PostFfnNorm)?,
            ffn: FeedForward::open(weights, index, &spec.ffn)?,
            residual_scale: spec.residual_scale,
        })
    }

    /// x (rows, hidden), whose first row is at `first_position`, → (rows, hidden)
    pub(crate) fn forward(&self, x: &Tensor, first_position: usize, cache: &mut LayerCache) -> Result<Tensor> {
        let mix = |x: &Tensor| match &self.mixer {
            LayerMixer::Attention(attention) => attention.forward(x, first_position, &mut cache.keys_values),
            LayerMixer::GatedDelta(delta) => delta.forward(x, &mut cache.past),
            LayerMixer::StateSpace(space) => space.forward(x, &mut cache.past),
        };
        let x = self.attention_norms.around(x, self.residual_scale, mix)?;
        self.ffn_norms.around(&x, self.residual_scale, |x| self.ffn.forward(x))
    }
}

impl Norms {
    fn open(
        weights: &Weights<'_>,
        index: LayerIndex,
        spec: &LayerSpec,
        before: [LayerTensor; 2],
        after: LayerTensor,
    ) -> std::result::Result<Self, OracleError> {
        let hidden = weights.spec.hidden;
        let (has_before, has_after) = match spec.norms {
            NormPlacement::Pre => (true, false),
            NormPlacement::PreAndPost => (true, true),
            NormPlacement::Post => (false, true),
        };
        let open_before = || Norm::open(weights, before.map(|tensor| of_layer(index, tensor)), hidden, spec.norm);
        // No norm after a half has a bias: it is an RMS norm whatever stands before the half.
        let open_after = || Norm::rms(weights, of_layer(index, after), hidden, spec.norm.eps);
        Ok(Self { before: has_before.then(open_before).transpose()?, after: has_after.then(open_after).transpose()? })
    }

    /// x + scale · after(half(before(x)))
    fn around(&self, x: &Tensor, scale: f32, half: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let input = match &self.before {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let output = match &self.after {
            Some(norm) => norm.forward(&half(&input)?)?,
            None => half(&input)?,
        };
        x + (output * f64::from(scale))?
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn norms_stand_before_and_after_a_half() {
        let x = Tensor::new(&[[3_f32, 4.0]], &Device::Cpu).unwrap();
        let norm = || Some(Norm::Rms { gain: Tensor::ones(2, DType::F32, &Device::Cpu).unwrap(), eps: 0.0 });
        // A half that adds (0, 1).
        let half = |x: &Tensor| x.broadcast_add(&Tensor::new(&[0_f32, 1.0], &Device::Cpu)?);
        let near = |norms: Norms, expected: [f32; 2]| {
            let y = norms.around(&x, 0.5, half).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-5), "{y:?} for {expected:?}");
        };
        near(Norms { before: None, after: None }, [3.0 + 0.5 * 3.0, 4.0 + 0.5 * 5.0]);
        let root = 12.5_f32.sqrt();
        near(Norms { before: norm(), after: None }, [3.0 + 1.5 / root, 4.0 + 0.5 * (4.0 / root + 1.0)]);
        let root = 17_f32.sqrt();
        near(Norms { before: None, after: norm() }, [3.0 + 1.5 / root, 4.0 + 2.5 / root]);
    }
}
