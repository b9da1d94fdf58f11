//! The gated delta rule (Yang, Kautz and Hatamizadeh, 2024, §3) for one head and one row: a matrix S that answers a key k
//! with a value forgets by a decay g, and is then corrected by what it answers wrongly to the row's key:
//! δ = β · (v − (g ⊙ S)ᵀk), S ← g ⊙ S + k δᵀ, and the output is Sᵀq.
//!
//! A lane is an element of the value, so that nothing is summed across lanes but q·k. What a row puts out and what it does to
//! the state are two kernels, for a row that may turn out wrong must not change the state.

use super::{
    lanes::{Kernel, LANES, Lanes, entries, sum},
    math::padded,
    real,
};

/// One head's row.
#[derive(Clone, Copy, Debug)]
pub struct DeltaRow<'a> {
    /// g: what remains of each key element's part of the state; (keys)
    pub decay: &'a [f32],
    /// k; (keys)
    pub key: &'a [f32],
}

/// What the row's query is answered, were the row part of the state, and the correction that makes it so.
pub struct DeltaOutput<'a> {
    /// S before the row: (keys, values), whole groups of 16 values.
    pub state: &'a [f32],
    /// The row.
    pub row: DeltaRow<'a>,
    /// q; (keys)
    pub query: &'a [f32],
    /// β: how much of the error is corrected.
    pub beta: f32,
    /// v in, δ out; (values)
    pub value: &'a mut [f32],
    /// (g ⊙ S)ᵀq + (q·k) δ, which is Sᵀq after the row; (values)
    pub out: &'a mut [f32],
}

/// What the row's query is answered with a correction that does not depend on the state (Dao and Gu, 2024: a state space).
pub struct LinearOutput<'a> {
    /// S before the row: (keys, values), whole groups of 16 values.
    pub state: &'a [f32],
    /// The row.
    pub row: DeltaRow<'a>,
    /// q; (keys)
    pub query: &'a [f32],
    /// δ; (values)
    pub correction: &'a [f32],
    /// (g ⊙ S)ᵀq + (q·k) δ; (values)
    pub out: &'a mut [f32],
}

/// Makes the row part of the state.
pub struct DeltaUpdate<'a> {
    /// S: (keys, values), whole groups of 16 values.
    pub state: &'a mut [f32],
    /// The row.
    pub row: DeltaRow<'a>,
    /// δ, as [`DeltaOutput`] found it; (values)
    pub correction: &'a [f32],
}

entries!(DeltaOutput<'_> => (), LinearOutput<'_> => (), DeltaUpdate<'_> => ());

/// Groups of values that are summed at a time: each has two sums, which wait for each other.
const TOGETHER: usize = 4;

impl Kernel for DeltaOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        let overlap = dot(l, self.query, self.row.key);
        let groups = self.value.len() / LANES;
        let whole = groups / TOGETHER * TOGETHER;
        for group in (0..whole).step_by(TOGETHER) {
            self.groups::<L, TOGETHER>(l, group, overlap);
        }
        for group in whole..groups {
            self.groups::<L, 1>(l, group, overlap);
        }
    }
}

impl DeltaOutput<'_> {
    /// The values of `N` groups from `group` on.
    #[inline(always)]
    fn groups<L: Lanes, const N: usize>(&mut self, l: L, group: usize, overlap: f32) {
        let width = self.value.len();
        let (mut held, mut asked) = ([l.splat(0.0); N], [l.splat(0.0); N]);
        let rows = self.state.chunks_exact(width);
        for (((row, decay), key), query) in rows.zip(self.row.decay).zip(self.row.key).zip(self.query) {
            let (key, query) = (l.splat(decay * key), l.splat(decay * query));
            for (n, state) in row[group * LANES..].as_chunks::<LANES>().0[..N].iter().enumerate() {
                let state = l.load(state);
                held[n] = l.fma(state, key, held[n]);
                asked[n] = l.fma(state, query, asked[n]);
            }
        }
        let (beta, overlap) = (l.splat(self.beta), l.splat(overlap));
        let values = self.value[group * LANES..].as_chunks_mut().0;
        let outs = self.out[group * LANES..].as_chunks_mut().0;
        for n in 0..N {
            let correction = l.mul(l.sub(l.load(&values[n]), held[n]), beta);
            l.store(correction, &mut values[n]);
            l.store(l.fma(overlap, correction, asked[n]), &mut outs[n]);
        }
    }
}

impl Kernel for LinearOutput<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(mut self, l: L) {
        let overlap = dot(l, self.query, self.row.key);
        let groups = self.correction.len() / LANES;
        let whole = groups / TOGETHER * TOGETHER;
        for group in (0..whole).step_by(TOGETHER) {
            self.groups::<L, TOGETHER>(l, group, overlap);
        }
        for group in whole..groups {
            self.groups::<L, 1>(l, group, overlap);
        }
    }
}

impl LinearOutput<'_> {
    /// The values of `N` groups from `group` on.
    #[inline(always)]
    fn groups<L: Lanes, const N: usize>(&mut self, l: L, group: usize, overlap: f32) {
        let width = self.correction.len();
        let mut asked = [l.splat(0.0); N];
        for ((row, decay), query) in self.state.chunks_exact(width).zip(self.row.decay).zip(self.query) {
            let query = l.splat(decay * query);
            for (n, state) in row[group * LANES..].as_chunks::<LANES>().0[..N].iter().enumerate() {
                asked[n] = l.fma(l.load(state), query, asked[n]);
            }
        }
        let overlap = l.splat(overlap);
        let corrections = self.correction[group * LANES..].as_chunks().0;
        let outs = self.out[group * LANES..].as_chunks_mut().0;
        for n in 0..N {
            l.store(l.fma(overlap, l.load(&corrections[n]), asked[n]), &mut outs[n]);
        }
    }
}

impl Kernel for DeltaUpdate<'_> {
    type Output = ();

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) {
        let rows = self.state.chunks_exact_mut(self.correction.len());
        for ((row, decay), key) in rows.zip(self.row.decay).zip(self.row.key) {
            let (decay, key) = (l.splat(*decay), l.splat(*key));
            for (state, correction) in row.as_chunks_mut().0.iter_mut().zip(self.correction.as_chunks().0) {
                l.store(l.fma(key, l.load(correction), l.mul(decay, l.load(state))), state);
            }
        }
    }
}

#[inline(always)]
fn dot<L: Lanes>(l: L, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = l.splat(0.0);
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        sums = l.fma(l.load(&padded(a, 0.0)), l.load(&padded(b, 0.0)), sums);
    }
    sum(l, sums)
}

/// What a row leaves of a state: exp(rate · softplus(x)), for a rate below 0.
pub fn decay(rate: f32, x: f32) -> f32 {
    real::exp((f64::from(rate) * wide_softplus(x)).clamp(-BOUND, BOUND)) as f32
}

/// ln(1 + e^x).
pub fn softplus(x: f32) -> f32 {
    wide_softplus(x) as f32
}

fn wide_softplus(x: f32) -> f64 {
    let x = f64::from(x);
    // Beyond 20 the two differ by less than an f32 can tell.
    if x.is_nan() || x > 20.0 { x } else { real::ln(1.0 + real::exp(x.max(-BOUND))) }
}

/// σ(x).
pub fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + real::exp(-f64::from(x).clamp(-BOUND, BOUND)))) as f32
}

/// Arguments beyond this have results that no f32 can hold, or 1.
const BOUND: f64 = 600.0;
