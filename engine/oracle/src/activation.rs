//! The activations of feed-forward halves, with the gate's product.

use candle_core::{Result, Tensor};
use candle_nn::ops::sigmoid;
use qmesh_models::spec::Activation;

/// act(x), times `up` where there is one.
pub(crate) fn activate(activation: Activation, x: &Tensor, up: Option<&Tensor>) -> Result<Tensor> {
    match activation {
        Activation::Silu => times(candle_nn::ops::silu(x)?, up),
        Activation::GeluTanh => times(x.gelu()?, up),
        Activation::SiluClamped => {
            let x = x.minimum(CLAMP)?;
            let activated = (&x * sigmoid(&(&x * SLOPE)?)?)?;
            let up = up.map(|up| up.clamp(-CLAMP, CLAMP)? + 1.0).transpose()?;
            times(activated, up.as_ref())
        }
        Activation::SiluLimited(limit) => {
            let up = up.map(|up| up.clamp(-limit, limit)).transpose()?;
            times(candle_nn::ops::silu(x)?.minimum(f64::from(limit))?, up.as_ref())
        }
        Activation::ReluSquared => times(x.relu()?.sqr()?, up),
    }
}

fn times(x: Tensor, up: Option<&Tensor>) -> Result<Tensor> {
    match up {
        Some(up) => x * up,
        None => Ok(x),
    }
}

/// How far gpt-oss lets its gate and its `up` go.
const CLAMP: f64 = 7.0;
/// The α of x·σ(α·x) there.
const SLOPE: f64 = 1.702;

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn near(activation: Activation, up: Option<[f32; 3]>, expected: [f64; 3]) {
        let x = Tensor::new(&[-1.5_f32, 0.5, 9.0], &Device::Cpu).unwrap();
        let up = up.map(|up| Tensor::new(&up, &Device::Cpu).unwrap());
        let y = activate(activation, &x, up.as_ref()).unwrap().to_vec1::<f32>().unwrap();
        let fits = y.iter().zip(expected).all(|(y, e)| (f64::from(*y) - e).abs() <= 2e-6 * e.abs());
        assert!(fits, "{activation:?}: {y:?} for {expected:?}");
    }

    #[test]
    fn each_is_its_formula() {
        let x = [-1.5_f64, 0.5, 9.0];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let silu = x.map(|x| x * sigmoid(x));
        near(Activation::Silu, None, silu);
        near(Activation::Silu, Some([2.0, -3.0, 0.5]), [2.0 * silu[0], -3.0 * silu[1], 0.5 * silu[2]]);
        let gelu = x.map(|x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        });
        near(Activation::GeluTanh, None, gelu);
        near(Activation::ReluSquared, None, [0.0, 0.25, 81.0]);
        near(Activation::ReluSquared, Some([2.0, -3.0, 0.5]), [0.0, -0.75, 40.5]);
        near(Activation::SiluLimited(2.5), Some([2.0, -3.0, 4.0]), [2.0 * silu[0], -2.5 * silu[1], 2.5 * 2.5]);
        let clamped = [-1.5, 0.5, 7.0].map(|x: f64| x * sigmoid(1.702 * x));
        near(Activation::SiluClamped, None, clamped);
        near(Activation::SiluClamped, Some([2.0, -9.0, 8.0]), [3.0 * clamped[0], -6.0 * clamped[1], 8.0 * clamped[2]]);
    }
}
