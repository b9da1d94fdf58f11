//! RMS norm and layer norm, over the last dimension.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops;
use qmesh_models::spec::{NormKind, NormSpec, TensorRole};

use crate::{error::OracleError, weights::Weights};

/// A norm with its weights.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    /// x / √(mean x² + ε) · gain.
    Rms { gain: Tensor, eps: f32 },
    /// (x − mean x) / √(variance of x + ε) · gain + bias.
    Layer { gain: Tensor, bias: Tensor, eps: f32 },
    /// The same without a bias.
    LayerUnbiased { gain: Tensor, eps: f32 },
}

impl Norm {
    /// The norm of rows of `len` elements; a bias is read only where the kind has one.
    pub(crate) fn open(
        weights: &Weights<'_>,
        [gain, bias]: [TensorRole; 2],
        len: usize,
        spec: NormSpec,
    ) -> std::result::Result<Self, OracleError> {
        let (gain, eps) = (weights.vector(gain, len)?, spec.eps);
        Ok(match spec.kind {
            NormKind::Rms => Self::Rms { gain, eps },
            NormKind::Layer => Self::Layer { gain, bias: weights.vector(bias, len)?, eps },
            NormKind::LayerUnbiased => Self::LayerUnbiased { gain, eps },
        })
    }

    /// An RMS norm, whatever the layer's other norms are.
    pub(crate) fn rms(
        weights: &Weights<'_>,
        gain: TensorRole,
        len: usize,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        Ok(Self::Rms { gain: weights.vector(gain, len)?, eps })
    }

    /// An RMS norm without gains.
    pub(crate) fn bare(weights: &Weights<'_>, len: usize, eps: f32) -> Result<Self> {
        Ok(Self::Rms { gain: Tensor::ones(len, DType::F32, weights.device)?, eps })
    }

    /// x (…, len) → (…, len)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        match self {
            Self::Rms { gain, eps } => ops::rms_norm(&x, gain, *eps),
            // The faster one takes the variance as mean x² − (mean x)², which loses digits where the mean is large.
            Self::Layer { gain, bias, eps } => ops::layer_norm_slow(&x, gain, bias, *eps),
            Self::LayerUnbiased { gain, eps } => ops::layer_norm_slow(&x, gain, &gain.zeros_like()?, *eps),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_are_normalised_alone() {
        let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
        let x = Tensor::new(&[[3_f32, 4.0], [1003.0, 1001.0]], &Device::Cpu).unwrap();
        let near = |norm: Norm, expected: [[f32; 2]; 2]| {
            let y = norm.forward(&x).unwrap().to_vec2::<f32>().unwrap();
            let all = y.iter().flatten().zip(expected.as_flattened());
            assert!(all.clone().all(|(y, e)| (y - e).abs() < 1e-5), "{y:?} for {expected:?}");
        };
        // √(mean x²) is √12.5 and √1004005.
        let gain = tensor(&[1.0, 10.0]);
        let rms = [[3.0 / 12.5_f32.sqrt(), 40.0 / 12.5_f32.sqrt()], [1.000_997, 9.990_015]];
        near(Norm::Rms { gain: gain.clone(), eps: 0.0 }, rms);
        // The variances are 0.25 and 1.
        near(Norm::LayerUnbiased { gain: gain.clone(), eps: 0.0 }, [[-1.0, 10.0], [1.0, -10.0]]);
        let bias = tensor(&[0.5, 0.0]);
        near(Norm::Layer { gain, bias, eps: 0.0 }, [[-0.5, 10.0], [1.5, -10.0]]);
    }
}
