//! Rotary position embedding: tables of cosines and sines from our own f64 functions, and the rotation.

use qmesh_arithmetic::{Rope, RopePairing, RopeScaling};
use qmesh_team::Team;

use super::{
    lanes::{Kernel, Lanes, Simd},
    real,
};

/// The angles per position of one kind of RoPE, in radians.
#[derive(Debug)]
pub struct Frequencies {
    pairing: RopePairing,
    angles: Vec<f64>,
    /// Factor on cosines and sines.
    magnitude: f64,
}

impl Frequencies {
    /// `factors` (dims / 2) is used by the scalings that come with factors only.
    pub fn new(rope: &Rope, factors: &[f32]) -> Self {
        let log_base = real::ln(f64::from(rope.base));
        let frequency = |i: usize| {
            let plain = real::exp(-log_base * (2 * i) as f64 / rope.dims as f64);
            match rope.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear(factor) => plain / f64::from(factor),
                RopeScaling::Factors | RopeScaling::LongRope { .. } => plain / f64::from(factors[i]),
                RopeScaling::Yarn { factor, original, beta_fast, beta_slow } => {
                    // The pair that turns so often in the original context; whole ones, as ggml takes them.
                    let pair = |turns: f32| {
                        let context = original as f64 / (f64::from(turns) * std::f64::consts::TAU);
                        rope.dims as f64 * real::ln(context) / (2.0 * log_base)
                    };
                    let first = pair(beta_fast).floor().max(0.0);
                    let last = pair(beta_slow).ceil().min(rope.dims as f64 - 1.0);
                    let divided = ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                    plain * (1.0 - divided) + plain / f64::from(factor) * divided
                }
            }
        };
        let angles = (0..rope.dims / 2).map(frequency).collect();
        Self { pairing: rope.pairing, angles, magnitude: f64::from(rope.magnitude) }
    }

    /// Radians per position of every rotated pair.
    pub fn angles(&self) -> &[f64] {
        &self.angles
    }

    /// The rotations of rows at `positions`.
    pub fn table(&self, team: &Team, positions: &[usize]) -> RopeTable {
        let pairs = self.angles.len();
        let [mut cos, mut sin] = [(); 2].map(|()| vec![0.0; positions.len() * pairs]);
        let together = (ROWS_TOGETHER * pairs).max(1);
        let parts = cos.chunks_mut(together).zip(sin.chunks_mut(together));
        let tasks = positions.chunks(ROWS_TOGETHER).zip(parts).collect();
        team.each(tasks, |(positions, (cos, sin)): (&[usize], Parts<'_>)| {
            let angles = positions.iter().flat_map(|position| self.angles.iter().map(|angle| *position as f64 * angle));
            for ((cos, sin), angle) in cos.iter_mut().zip(sin).zip(angles) {
                let (s, c) = real::sin_cos(angle);
                (*cos, *sin) = ((c * self.magnitude) as f32, (s * self.magnitude) as f32);
            }
        });
        RopeTable { pairing: self.pairing, pairs, cos, sin }
    }
}

/// Rows whose rotations one thread computes.
const ROWS_TOGETHER: usize = 16;

/// Their cosines and sines.
type Parts<'a> = (&'a mut [f32], &'a mut [f32]);

/// Cosine and sine of every rotated pair of some rows.
#[derive(Debug)]
pub struct RopeTable {
    pairing: RopePairing,
    pairs: usize,
    /// (rows, pairs)
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Cosines and sines of row `row`'s pairs.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let pairs = row * self.pairs..(row + 1) * self.pairs;
        (&self.cos[pairs.clone()], &self.sin[pairs])
    }

    /// Rotates the first elements of each of `heads` (heads, head_dim), which belong to row `row`.
    pub fn rotate(&self, simd: Simd, row: usize, heads: &mut [f32], head_dim: usize) {
        let (cos, sin) = self.row(row);
        simd.run(Rotate { pairing: self.pairing, cos, sin, heads, head_dim });
    }
}

struct Rotate<'a> {
    pairing: RopePairing,
    cos: &'a [f32],
    sin: &'a [f32],
    heads: &'a mut [f32],
    head_dim: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    /// Two products and one sum for each element: the compiler makes vectors of them, and changes no bit.
    #[inline(always)]
    fn compute<L: Lanes>(self, _lanes: L) {
        let rotations = self.cos.iter().zip(self.sin);
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            match self.pairing {
                RopePairing::Interleaved => {
                    for ([x, y], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(rotations.clone()) {
                        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                    }
                }
                RopePairing::Halves => {
                    let (low, high) = head.split_at_mut(self.cos.len());
                    for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(rotations.clone()) {
                        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                    }
                }
            }
        }
    }
}
