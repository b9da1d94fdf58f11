//! Causal convolution of channels over a few rows: each channel with its own kernel, by itself.

use super::{
    lanes::{Kernel, LANES, Lanes, entries},
    math::{padded, silu},
};

/// out ← silu(Σ tap · row), each channel by itself: what comes before later rows' products in layers that keep a state.
pub struct Convolve<'a> {
    /// The factors of a row's channels and the row itself, the oldest row first. Rows that do not exist are left out: they
    /// would be zeros.
    pub terms: &'a [(&'a [f32], &'a [f32])],
    /// (channels)
    pub out: &'a mut [f32],
}

entries!(Convolve<'_> => ());

impl Kernel for Convolve<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        for (i, out) in self.out.chunks_mut(LANES).enumerate() {
            let channels = i * LANES..i * LANES + out.len();
            let mut sums = l.splat(0.0);
            for (tap, row) in self.terms {
                let (tap, row) = (padded(&tap[channels.clone()], 0.0), padded(&row[channels.clone()], 0.0));
                sums = l.fma(l.load(&tap), l.load(&row), sums);
            }
            let mut values = [0.0; LANES];
            l.store(silu(l, sums), &mut values);
            out.copy_from_slice(&values[..out.len()]);
        }
    }
}
