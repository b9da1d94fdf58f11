//! Element-wise functions and sums over a row: our own `exp`, the gates of feed-forward halves, and log-softmax.

use qmesh_arithmetic::Activation;

use super::{
    lanes::{Kernel, LANES, Lanes, entries, largest, sum},
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

/// x · σ(x).
#[inline(always)]
pub(super) fn silu<L: Lanes>(l: L, x: L::F) -> L::F {
    logistic(l, x, x)
}

/// x · σ(z).
#[inline(always)]
fn logistic<L: Lanes>(l: L, x: L::F, z: L::F) -> L::F {
    l.div(x, l.add(l.splat(1.0), exp(l, l.sub(l.splat(0.0), z))))
}

/// x ← cap · tanh(x / cap), for each element.
pub struct SoftCap<'a> {
    /// The elements.
    pub x: &'a mut [f32],
    /// What no result exceeds.
    pub cap: f32,
}

entries!(SoftCap<'_> => (), GatedActivation<'_> => (), Sigmoid<'_> => (), SumExponentials<'_> => LogSum, Exponentials<'_> => ());

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        for x in self.x.chunks_mut(LANES) {
            let mut capped = [0.0; LANES];
            l.store(soft_cap(l, l.load(&padded(x, 0.0)), self.cap), &mut capped);
            x.copy_from_slice(&capped[..x.len()]);
        }
    }
}

/// gate ← activation(gate) · up, or activation(gate) where there is no `up`.
pub struct GatedActivation<'a> {
    /// The function.
    pub activation: Activation,
    /// What goes through it, and what comes out.
    pub gate: &'a mut [f32],
    /// As many, or none.
    pub up: Option<&'a [f32]>,
}

impl Kernel for GatedActivation<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let Self { activation, gate, up } = self;
        // What changes nothing: a factor of 1, which `SiluClamped` makes of 0.
        let neutral = match activation {
            Activation::Silu | Activation::GeluTanh | Activation::SiluLimited(_) | Activation::ReluSquared => {
                [1.0; LANES]
            }
            Activation::SiluClamped => [0.0; LANES],
        };
        for (i, gate) in gate.chunks_mut(LANES).enumerate() {
            let up = up.map_or(&neutral[..gate.len()], |up| &up[i * LANES..][..gate.len()]);
            let (x, up) = (l.load(&padded(gate, 0.0)), l.load(&padded(up, 0.0)));
            // All but the last are x·σ(z): z = x, or 1.702·x, or 2·√(2/π)·(x + 0.044715·x³).
            let (activated, up) = match activation {
                Activation::Silu => (silu(l, x), up),
                Activation::GeluTanh => {
                    let cubic = l.fma(l.mul(l.mul(x, x), x), l.splat(0.044_715), x);
                    (logistic(l, x, l.mul(l.splat(1.595_769_2), cubic)), up)
                }
                Activation::SiluClamped => {
                    let x = l.min(l.splat(7.0), x);
                    let up = l.min(l.splat(7.0), l.max(l.splat(-7.0), up));
                    (logistic(l, x, l.mul(l.splat(1.702), x)), l.add(up, l.splat(1.0)))
                }
                Activation::SiluLimited(limit) => {
                    let (least, most) = (l.splat(-limit), l.splat(limit));
                    (l.min(most, silu(l, x)), l.min(most, l.max(least, up)))
                }
                Activation::ReluSquared => {
                    let x = l.max(l.splat(0.0), x);
                    (l.mul(x, x), up)
                }
            };
            let mut values = [0.0; LANES];
            l.store(l.mul(activated, up), &mut values);
            gate.copy_from_slice(&values[..gate.len()]);
        }
    }
}

/// x ← x · σ(gate), for each element.
pub struct Sigmoid<'a> {
    /// The elements.
    pub x: &'a mut [f32],
    /// As many.
    pub gate: &'a [f32],
}

impl Kernel for Sigmoid<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        for (x, gate) in self.x.chunks_mut(LANES).zip(self.gate.chunks(LANES)) {
            let gate = l.load(&padded(gate, 0.0));
            let inverse = l.add(l.splat(1.0), exp(l, l.sub(l.splat(0.0), gate)));
            let mut values = [0.0; LANES];
            l.store(l.div(l.load(&padded(x, 0.0)), inverse), &mut values);
            x.copy_from_slice(&values[..x.len()]);
        }
    }
}

/// What turns a logit into its log-probability, and back into its share of the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSum {
    /// The largest logit.
    pub largest: f32,
    /// Σ exp(x − largest).
    pub sum: f32,
    /// ln `sum`.
    pub log_sum: f32,
}

impl LogSum {
    /// The log-probability of a logit.
    pub fn log_probability(self, logit: f32) -> f32 {
        (logit - self.largest) - self.log_sum
    }
}

/// Sums the exponentials of a row of logits.
pub struct SumExponentials<'a>(pub &'a [f32]);

impl Kernel for SumExponentials<'_> {
    type Output = LogSum;

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) -> LogSum {
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
pub struct Exponentials<'a> {
    /// The elements.
    pub x: &'a mut [f32],
    /// The largest element.
    pub largest: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
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
