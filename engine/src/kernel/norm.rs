//! RMS norm: the sum of squares in sixteen lanes and one tree.

use super::{
    lanes::{Kernel, LANES, Lanes, sum},
    math::padded,
};

/// Normalises each row of `x` in place: x ← x / √(mean x² + ε) · gain; a row is as long as the gain.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) eps: f32,
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for row in self.x.chunks_exact_mut(self.gain.len()) {
            let mut squares = l.splat(0.0);
            for x in row.chunks(LANES) {
                let x = l.load(&padded(x, 0.0));
                squares = l.fma(x, x, squares);
            }
            let mean = sum(l, squares) / self.gain.len() as f32;
            // Squares that overflow must not look like silence.
            let factor = if mean.is_finite() { 1.0 / (mean + self.eps).sqrt() } else { f32::NAN };
            for (x, gain) in row.iter_mut().zip(self.gain) {
                *x = *x * factor * gain;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kernel::{lanes::Simd, matrix::tests::noise};

    #[test]
    fn every_tier_gives_the_same_bits_close_to_the_framework() {
        for width in [16, 64, 100, 576] {
            let (x, gain) = (noise(3 * width, 1), noise(width, 2));
            let tensor = Tensor::from_slice(&x, (3, width), &Device::Cpu).unwrap();
            let weight = Tensor::from_slice(&gain, width, &Device::Cpu).unwrap();
            let expected = candle_nn::ops::rms_norm(&tensor, &weight, 1e-5).unwrap();
            let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
            let results: Vec<Vec<f32>> = Simd::available()
                .into_iter()
                .map(|simd| {
                    let mut x = x.clone();
                    simd.run(RmsNorm { x: &mut x, gain: &gain, eps: 1e-5 });
                    x
                })
                .collect();
            assert!(results.iter().all(|r| *r == results[0]));
            for (y, e) in results[0].iter().zip(expected) {
                assert!((y - e).abs() < 1e-5, "width {width}: {y} for {e}");
            }
        }
    }
}
