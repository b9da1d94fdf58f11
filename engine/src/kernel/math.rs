//! Element-wise functions and sums over a row: our own `exp`, the gates of feed-forward halves, and log-softmax.

use qmesh_models::spec::Activation;

use super::{
    lanes::{Kernel, LANES, Lanes, largest, sum},
    real,
};

/// e^x to about an ulp; arguments are held to ±87, NaN stays NaN.
#[inline(always)]
pub(super) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    let x = l.min(l.splat(88.0), l.max(l.splat(-87.0), x));
    // Adding 1.5·2^23 rounds to an integer and leaves it in the low bits.
    let magic = l.splat(12_582_912.0);
    let shifted = l.fma(x, l.splat(std::f32::consts::LOG2_E), magic);
    let n = l.sub(shifted, magic);
    let r = l.fma(n, l.splat(2.121_944_4e-4), l.fma(n, l.splat(-0.693_359_4), x));
    let mut series = l.splat(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = l.fma(series, r, l.splat(coefficient));
    }
    let one = l.splat(1.0);
    let power = l.add_bits(l.shl::<23>(l.to_bits(shifted)), l.to_bits(one));
    l.mul(l.add(l.fma(series, l.mul(r, r), r), one), l.of_bits(power))
}

/// cap · tanh(x / cap), by tanh y = 1 − 2 / (e^2y + 1); its error is a few ulps of `cap`. NaN stays NaN.
#[inline(always)]
pub(super) fn soft_cap<L: Lanes>(l: L, x: L::F, cap: f32) -> L::F {
    let one = l.splat(1.0);
    let square = exp(l, l.mul(x, l.splat(2.0 / cap)));
    l.mul(l.splat(cap), l.sub(one, l.div(l.splat(2.0), l.add(square, one))))
}

/// x ← cap · tanh(x / cap), for each element.
pub(crate) struct SoftCap<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for x in self.x.chunks_mut(LANES) {
            let mut capped = [0.0; LANES];
            l.store(soft_cap(l, l.load(&padded(x, 0.0)), self.cap), &mut capped);
            x.copy_from_slice(&capped[..x.len()]);
        }
    }
}

/// gate ← activation(gate) · up, or activation(gate) where there is no `up`.
pub(crate) struct Gate<'a> {
    pub(crate) activation: Activation,
    pub(crate) gate: &'a mut [f32],
    pub(crate) up: Option<&'a [f32]>,
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let Self { activation, gate, up } = self;
        let ones = [1.0; LANES];
        for (i, gate) in gate.chunks_mut(LANES).enumerate() {
            let up = up.map_or(&ones[..gate.len()], |up| &up[i * LANES..][..gate.len()]);
            let (x, up) = (l.load(&padded(gate, 0.0)), l.load(&padded(up, 0.0)));
            // All are x·σ(z): z = x, or 1.702·x, or 2·√(2/π)·(x + 0.044715·x³).
            let (x, z, up) = match activation {
                Activation::Silu => (x, x, up),
                Activation::GeluTanh => {
                    let cubic = l.fma(l.mul(l.mul(x, x), x), l.splat(0.044_715), x);
                    (x, l.mul(l.splat(1.595_769_2), cubic), up)
                }
                Activation::SiluClamped => {
                    let x = l.min(l.splat(7.0), x);
                    let up = l.min(l.splat(7.0), l.max(l.splat(-7.0), up));
                    (x, l.mul(l.splat(1.702), x), l.add(up, l.splat(1.0)))
                }
            };
            let sigmoid = l.add(l.splat(1.0), exp(l, l.sub(l.splat(0.0), z)));
            let mut values = [0.0; LANES];
            l.store(l.mul(l.div(x, sigmoid), up), &mut values);
            gate.copy_from_slice(&values[..gate.len()]);
        }
    }
}

/// What turns a logit into its log-probability, and back into its share of the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogSum {
    /// The largest logit.
    pub(crate) largest: f32,
    /// Σ exp(x − largest).
    pub(crate) sum: f32,
    /// ln `sum`.
    pub(crate) log_sum: f32,
}

impl LogSum {
    /// The log-probability of a logit.
    pub(crate) fn log_probability(self, logit: f32) -> f32 {
        (logit - self.largest) - self.log_sum
    }
}

/// Sums the exponentials of a row of logits.
pub(crate) struct SumExponentials<'a>(pub(crate) &'a [f32]);

impl Kernel for SumExponentials<'_> {
    type Output = LogSum;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> LogSum {
        let mut top = l.splat(f32::NEG_INFINITY);
        for x in self.0.chunks(LANES) {
            top = l.max(top, l.load(&padded(x, f32::NEG_INFINITY)));
        }
        let top = largest(l, top);
        let mut sums = l.splat(0.0);
        for x in self.0.chunks(LANES) {
            let mut terms = [0.0; LANES];
            l.store(exp(l, l.sub(l.load(&padded(x, 0.0)), l.splat(top))), &mut terms);
            sums = l.add(sums, l.load(&padded(&terms[..x.len()], 0.0)));
        }
        let sum = sum(l, sums);
        LogSum { largest: top, sum, log_sum: real::ln(f64::from(sum)) as f32 }
    }
}

/// x ← exp(x − largest), for each element.
pub(crate) struct Exponentials<'a> {
    pub(crate) x: &'a mut [f32],
    pub(crate) largest: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for x in self.x.chunks_mut(LANES) {
            let mut terms = [0.0; LANES];
            l.store(exp(l, l.sub(l.load(&padded(x, 0.0)), l.splat(self.largest))), &mut terms);
            x.copy_from_slice(&terms[..x.len()]);
        }
    }
}

/// Up to sixteen values, filled up.
#[inline(always)]
pub(super) fn padded(x: &[f32], fill: f32) -> [f32; LANES] {
    x.first_chunk().copied().unwrap_or_else(|| {
        let mut all = [fill; LANES];
        all[..x.len()].copy_from_slice(x);
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::lanes::Simd;

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    fn on_all_tiers<T: std::fmt::Debug + PartialEq>(f: impl Fn(Simd) -> T) -> T {
        let results: Vec<T> = Simd::available().into_iter().map(f).collect();
        assert!(results.iter().all(|r| *r == results[0]), "tiers differ: {results:?}");
        results.into_iter().next().unwrap()
    }

    fn exponentials(x: &[f32]) -> Vec<f32> {
        let words = on_all_tiers(|simd| {
            let mut x = x.to_vec();
            simd.run(Exponentials { x: &mut x, largest: 0.0 });
            bits(&x)
        });
        words.into_iter().map(f32::from_bits).collect()
    }

    #[test]
    fn exp_is_good_to_two_ulps_and_keeps_nan() {
        let x: Vec<f32> = (0..17_501).map(|i| i as f32 * 0.01 - 87.0).collect();
        for (x, y) in x.iter().zip(exponentials(&x)) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(y) / exact - 1.0).abs() < 2.4e-7, "exp({x}) = {y}, not {exact}");
        }
        let edge = exponentials(&[0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY]);
        assert!(edge[0] == 1.0 && edge[1].is_nan() && edge[2] < 2e-38 && edge[3] > 1e38);
    }

    #[test]
    fn soft_caps_are_hyperbolic_tangents() {
        let x: Vec<f32> = (0..2003).map(|i| i as f32 * 0.3 - 300.0).collect();
        let words = on_all_tiers(|simd| {
            let mut x = x.clone();
            simd.run(SoftCap { x: &mut x, cap: 30.0 });
            bits(&x)
        });
        for (x, y) in x.iter().zip(words) {
            let exact = 30.0 * (f64::from(*x) / 30.0).tanh();
            assert!((f64::from(f32::from_bits(y)) - exact).abs() < 8e-6, "{x}");
        }
        let mut nan = [f32::NAN];
        Simd::available()[0].run(SoftCap { x: &mut nan, cap: 30.0 });
        assert!(nan[0].is_nan());
    }

    #[test]
    fn gates_are_those_of_the_framework() {
        let x: Vec<f32> = (0..1003).map(|i| i as f32 * 0.03 - 15.0).collect();
        let up: Vec<f32> = (0..1003).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
        let tensor = candle_core::Tensor::new(x.as_slice(), &candle_core::Device::Cpu).unwrap();
        let clamped = tensor.clamp(f32::NEG_INFINITY, 7.0).unwrap();
        let sigmoid = candle_nn::ops::sigmoid(&(&clamped * 1.702).unwrap()).unwrap();
        for (activation, expected) in [
            (Activation::Silu, tensor.silu().unwrap()),
            (Activation::GeluTanh, tensor.gelu().unwrap()),
            (Activation::SiluClamped, (clamped * sigmoid).unwrap()),
        ] {
            let factor = |up: f32| match activation {
                Activation::Silu | Activation::GeluTanh => up,
                Activation::SiluClamped => up.clamp(-7.0, 7.0) + 1.0,
            };
            for up in [Some(&up), None] {
                let out = on_all_tiers(|simd| {
                    let mut out = x.clone();
                    simd.run(Gate { activation, gate: &mut out, up: up.map(Vec::as_slice) });
                    bits(&out)
                });
                for (i, (y, e)) in out.into_iter().zip(expected.to_vec1::<f32>().unwrap()).enumerate() {
                    let (y, e) = (f32::from_bits(y), e * factor(up.map_or(1.0, |up| up[i])));
                    assert!((y - e).abs() <= 2e-6 * e.abs().max(10.0), "{activation:?}: {y} for {e}");
                }
            }
        }
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let x: Vec<f32> = (0..1000).map(|i| ((i * 37) % 113) as f32 * 0.2 - 9.0).collect();
        let sum = on_all_tiers(|simd| simd.run(SumExponentials(&x)));
        assert_eq!(sum.largest, 112.0 * 0.2 - 9.0);
        let total: f64 = x.iter().map(|v| f64::from(sum.log_probability(*v)).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }
}
