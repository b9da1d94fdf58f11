//! One layer: x + scale · half(x) for its attention and for its feed-forward half, with norms before or after each, one half
//! after the other or both side by side.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{Ffn, KvSource, LayerIndex, LayerSpec, LayerTensor, Mixer, NormPlacement, OutputScale};

use crate::{
    attention::Attention,
    cache::LayerCache,
    error::OracleError,
    ffn::FeedForward,
    gated_delta::GatedDelta,
    latent::LatentAttention,
    layer_input::LayerInput,
    norm::Norm,
    state_space::StateSpace,
    weights::{Weights, of_layer},
};

/// The weights of one layer, one of whose halves may be missing.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    attention_norms: Norms,
    mixer: Option<LayerMixer>,
    ffn_norms: Norms,
    ffn: Option<FeedForward>,
    order: Order,
    residual_scale: f32,
    /// Where it takes in a row of the token's.
    input: Option<LayerInput>,
    /// Which earlier layer's keys and values it meets, if not its own.
    source: Option<usize>,
    /// Factor on all that comes out; one element.
    output_scale: Option<Tensor>,
}

/// What mixes rows.
#[derive(Clone, Debug)]
enum LayerMixer {
    Attention(Attention),
    Latent(LatentAttention),
    GatedDelta(GatedDelta),
    StateSpace(StateSpace),
}

/// How the halves stand to each other.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// The second takes in what the first has added.
    InTurn,
    /// Both take in the same, behind the first one's norm.
    Beside,
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
            attention_norms: match spec.mixer {
                Mixer::Attention(_) | Mixer::Latent(_) | Mixer::GatedDelta(_) | Mixer::StateSpace(_) => {
                    Norms::open(weights, index, spec, [AttnNorm, AttnNormBias], PostAttnNorm)?
                }
                Mixer::None => Norms::NONE,
            },
            mixer: LayerMixer::open(weights, index, spec)?,
            ffn_norms: match spec.ffn {
                Ffn::Gated { .. } | Ffn::Plain { .. } | Ffn::Experts(_) => {
                    Norms::open(weights, index, spec, [FfnNorm, FfnNormBias], PostFfnNorm)?
                }
                // What stands before them is theirs.
                Ffn::Both { .. } => {
                    Norms { before: None, ..Norms::open(weights, index, spec, [FfnNorm, FfnNormBias], PostFfnNorm)? }
                }
                Ffn::None => Norms::NONE,
            },
            ffn: FeedForward::open(weights, index, &spec.ffn, spec.norm.eps)?,
            order: match spec.norms {
                NormPlacement::Beside => Order::Beside,
                NormPlacement::Pre | NormPlacement::PreAndPost | NormPlacement::Post => Order::InTurn,
            },
            residual_scale: spec.residual_scale,
            input: weights.spec.layer_inputs.map(|inputs| LayerInput::open(weights, index, inputs)).transpose()?,
            source: match spec.attention().map(|attention| attention.source) {
                Some(KvSource::Layer(source)) => Some(source.0),
                Some(KvSource::Own) | None => None,
            },
            output_scale: match spec.output_scale {
                OutputScale::None => None,
                OutputScale::Learned => Some(weights.vector(of_layer(index, LayerTensor::OutputScale), 1)?),
            },
        })
    }

    /// Which earlier layer's keys and values it meets, if not its own.
    pub(crate) fn source(&self) -> Option<usize> {
        self.source
    }

    /// x (rows, hidden), whose first row is at `first_position`, → (rows, hidden). `chosen` is the mask of an earlier layer that
    /// chooses positions, for those that go by it; `taken` (rows, width) what the layer takes in beside, if it does.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        first_position: usize,
        cache: &mut LayerCache,
        chosen: &mut Option<Tensor>,
        taken: Option<&Tensor>,
    ) -> Result<Tensor> {
        let out = self.halves(x, first_position, cache, chosen)?;
        let out = match (&self.input, taken) {
            (Some(input), Some(taken)) => input.take_in(&out, taken)?,
            (None, _) | (_, None) => out,
        };
        match &self.output_scale {
            Some(scale) => out.broadcast_mul(scale),
            None => Ok(out),
        }
    }

    fn halves(
        &self,
        x: &Tensor,
        first_position: usize,
        cache: &mut LayerCache,
        chosen: &mut Option<Tensor>,
    ) -> Result<Tensor> {
        let mixed = match &self.mixer {
            Some(mixer) => {
                let mix = |x: &Tensor| mixer.forward(x, first_position, cache, chosen);
                self.attention_norms.around(x, self.residual_scale, mix)?
            }
            None => x.clone(),
        };
        let Some(ffn) = &self.ffn else { return Ok(mixed) };
        match self.order {
            Order::InTurn => self.ffn_norms.around(&mixed, self.residual_scale, |x| ffn.forward(x)),
            Order::Beside => {
                let both = self.attention_norms.around(x, self.residual_scale, |x| ffn.forward(x))?;
                mixed + (both - x)?
            }
        }
    }
}

impl LayerMixer {
    fn open(
        weights: &Weights<'_>,
        index: LayerIndex,
        spec: &LayerSpec,
    ) -> std::result::Result<Option<Self>, OracleError> {
        let eps = spec.norm.eps;
        Ok(match &spec.mixer {
            Mixer::Attention(attention) => Some(Self::Attention(Attention::open(weights, index, attention, eps)?)),
            Mixer::Latent(latent) => Some(Self::Latent(LatentAttention::open(weights, index, latent, eps)?)),
            Mixer::GatedDelta(delta) => Some(Self::GatedDelta(GatedDelta::open(weights, index, delta, eps)?)),
            Mixer::StateSpace(space) => Some(Self::StateSpace(StateSpace::open(weights, index, space, eps)?)),
            Mixer::None => None,
        })
    }

    /// x (rows, hidden), whose first row is at `first_position`, → (rows, hidden)
    fn forward(
        &self,
        x: &Tensor,
        first_position: usize,
        cache: &mut LayerCache,
        chosen: &mut Option<Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Attention(attention) => attention.forward(x, first_position, cache),
            Self::Latent(latent) => latent.forward(x, first_position, &mut cache.keys_values, chosen),
            Self::GatedDelta(delta) => delta.forward(x, &mut cache.past),
            Self::StateSpace(space) => space.forward(x, &mut cache.past),
        }
    }
}

impl Norms {
    /// Those of a half that is missing.
    const NONE: Self = Self { before: None, after: None };

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
            NormPlacement::Beside => (before.contains(&LayerTensor::AttnNorm), false),
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
