//! RMS and layer norm: sums in sixteen lanes and one tree.

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

/// Normalises each row of `x` in place: x ← (x − mean x) / √(mean (x − mean x)² + ε) · gain + bias; a row is as long as
/// the gain and the bias.
pub(crate) struct LayerNorm<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let count = self.gain.len() as f32;
        for row in self.x.chunks_exact_mut(self.gain.len()) {
            let mut values = l.splat(0.0);
            for x in row.chunks(LANES) {
                values = l.add(values, l.load(&padded(x, 0.0)));
            }
            let mean = sum(l, values) / count;
            let mut squares = l.splat(0.0);
            for x in row.chunks(LANES) {
                let x = l.sub(l.load(&padded(x, mean)), l.splat(mean));
                squares = l.fma(x, x, squares);
            }
            let variance = sum(l, squares) / count;
            let factor = if variance.is_finite() { 1.0 / (variance + self.eps).sqrt() } else { f32::NAN };
            for ((x, gain), bias) in row.iter_mut().zip(self.gain).zip(self.bias) {
                *x = (*x - mean) * factor * gain + bias;
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

    #[test]
    fn layer_norms_are_the_same_on_every_tier_and_close_to_f64() {
        for width in [16, 64, 100, 576] {
            // A mean far from zero shows whether the padding counts.
            let x: Vec<f32> = noise(3 * width, 1).iter().map(|x| x + 3.0).collect();
            let (gain, bias) = (noise(width, 2), noise(width, 3));
            let results: Vec<Vec<f32>> = Simd::available()
                .into_iter()
                .map(|simd| {
                    let mut x = x.clone();
                    simd.run(LayerNorm { x: &mut x, gain: &gain, bias: &bias, eps: 1e-5 });
                    x
                })
                .collect();
            assert!(results.iter().all(|r| *r == results[0]));
            for (row, ours) in x.chunks(width).zip(results[0].chunks(width)) {
                let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, y) in ours.iter().enumerate() {
                    let normed = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt();
                    let exact = normed * f64::from(gain[i]) + f64::from(bias[i]);
                    assert!((f64::from(*y) - exact).abs() < 1e-5, "width {width}: {y} for {exact}");
                }
            }
        }
    }
}
