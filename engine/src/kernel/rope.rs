//! Rotary position embedding: tables of cosines and sines from our own f64 functions, and the rotation.

use qmesh_models::spec::{Rope, RopePairing, RopeScaling};

use super::{
    lanes::{Kernel, Lanes, Simd},
    real,
    team::Team,
};

/// The angles per position of one kind of RoPE, in radians.
#[derive(Debug)]
pub(crate) struct Frequencies {
    pairing: RopePairing,
    angles: Vec<f64>,
    /// Factor on cosines and sines.
    magnitude: f64,
}

impl Frequencies {
    /// `factors` (dims / 2) is used by the scalings that come with factors only.
    pub(crate) fn new(rope: &Rope, factors: &[f32]) -> Self {
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

    /// The rotations of rows at `positions`.
    pub(crate) fn table(&self, team: &Team, positions: &[usize]) -> RopeTable {
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
pub(crate) struct RopeTable {
    pairing: RopePairing,
    pairs: usize,
    /// (rows, pairs)
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Rotates the first elements of each of `heads` (heads, head_dim), which belong to row `row`.
    pub(crate) fn rotate(&self, simd: Simd, row: usize, heads: &mut [f32], head_dim: usize) {
        let [cos, sin] = [&self.cos, &self.sin].map(|table| &table[row * self.pairs..][..self.pairs]);
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
    fn run<L: Lanes>(self, _lanes: L) {
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kernel::matrix::tests::noise;

    fn rope(pairing: RopePairing, dims: usize, scaling: RopeScaling) -> Rope {
        Rope { pairing, dims, base: 10_000.0, scaling, magnitude: 1.0 }
    }

    #[test]
    fn both_pairings_rotate_as_the_framework_does_on_every_tier() {
        let (rows, dims) = (35, 40);
        let positions: Vec<usize> = (0..rows).map(|r| 100 * r + 3).collect();
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let frequencies = Frequencies::new(&rope(pairing, dims, RopeScaling::None), &[]);
            let table = frequencies.table(&Team::new(3).unwrap(), &positions);
            let alone = frequencies.table(&Team::new(1).unwrap(), &positions[7..8]);
            assert_eq!((&alone.cos[..], &alone.sin[..]), (&table.cos[140..160], &table.sin[140..160]));
            let x = noise(rows * dims, 4);
            let angles = |f: fn(f64) -> f64| {
                let values = positions.iter().flat_map(|p| {
                    (0..dims / 2).map(move |i| f(*p as f64 * 10_000_f64.powf(-2.0 * i as f64 / dims as f64)) as f32)
                });
                Tensor::from_vec(values.collect::<Vec<f32>>(), (rows, dims / 2), &Device::Cpu).unwrap()
            };
            let tensor = Tensor::from_slice(&x, (1, 1, rows, dims), &Device::Cpu).unwrap();
            let (cos, sin) = (angles(f64::cos), angles(f64::sin));
            let expected = match pairing {
                RopePairing::Interleaved => candle_nn::rotary_emb::rope_i(&tensor, &cos, &sin),
                RopePairing::Halves => candle_nn::rotary_emb::rope(&tensor, &cos, &sin),
            };
            let expected: Vec<f32> = expected.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let tiers: Vec<Vec<f32>> = Simd::available()
                .into_iter()
                .map(|simd| {
                    let mut y = x.clone();
                    let rows = y.chunks_mut(dims).enumerate();
                    rows.for_each(|(row, head)| table.rotate(simd, row, head, dims));
                    y
                })
                .collect();
            assert!(tiers.iter().all(|y| *y == tiers[0]), "{pairing:?}");
            assert!(tiers[0].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{pairing:?}");
        }
    }

    #[test]
    fn yarn_divides_slow_frequencies_only() {
        let scaling = RopeScaling::Yarn { factor: 4.0, original: 512, beta_fast: 32.0, beta_slow: 1.0 };
        let scaled = Rope { magnitude: 1.5, ..rope(RopePairing::Halves, 64, scaling) };
        let plain = Frequencies::new(&rope(RopePairing::Halves, 64, RopeScaling::None), &[]);
        let yarn = Frequencies::new(&scaled, &[]);
        let ratio = |i: usize| plain.angles[i] / yarn.angles[i];
        // 32 turns in 512 positions: pair 64·ln(512 / 64π) / (2·ln 10000) = 3.2; one turn: pair 15.3.
        assert_eq!((ratio(3), ratio(16), ratio(31)), (1.0, 4.0, 4.0));
        assert!((1.0..4.0).contains(&ratio(4)) && ratio(4) < ratio(5) && ratio(15) < 4.0);
        let table = yarn.table(&Team::new(1).unwrap(), &[0, 7]);
        assert_eq!((table.cos[0], table.sin[0]), (1.5, 0.0));
        assert!((table.cos[32].hypot(table.sin[32]) - 1.5).abs() < 1e-6);
    }

    #[test]
    fn scalings_divide_the_frequencies_and_other_elements_stay() {
        let halved = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Linear(2.0)), &[]);
        let factored = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Factors), &[1.0, 8.0]);
        assert!((halved.angles[1] - 0.005).abs() < 1e-15 && (factored.angles[1] - 0.00125).abs() < 1e-15);
        assert_eq!((halved.angles[0], factored.angles[0]), (0.5, 1.0));
        let mut heads = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0].repeat(2);
        halved.table(&Team::new(1).unwrap(), &[9]).rotate(Simd::available()[0], 0, &mut heads, 6);
        assert_eq!((heads[4..6].to_vec(), &heads[..6]), (vec![5.0, 6.0], &heads[6..]));
        assert_ne!(heads[..4], [1.0, 2.0, 3.0, 4.0]);
    }
}
