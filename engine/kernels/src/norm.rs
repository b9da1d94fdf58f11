//! RMS and layer norm: sums in sixteen lanes and one tree.

use super::{
    lanes::{Kernel, LANES, Lanes, entries, sum},
    math::padded,
};

/// Normalises each row of `x` in place: x ← x / √(mean x² + ε) · gain; a row is as long as the gain.
pub struct RmsNorm<'a> {
    /// (rows, width)
    pub x: &'a mut [f32],
    /// (width)
    pub gain: &'a [f32],
    /// ε.
    pub eps: f32,
}

entries!(RmsNorm<'_> => (), LayerNorm<'_> => ());

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
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
pub struct LayerNorm<'a> {
    /// (rows, width)
    pub x: &'a mut [f32],
    /// (width)
    pub gain: &'a [f32],
    /// (width)
    pub bias: &'a [f32],
    /// ε.
    pub eps: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
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
