//! Rotary position embedding: tables of cosines and sines from our own f64 functions, and the rotation.

use qmesh_models::spec::{Rope, RopePairing, RopeScaling};

use super::real;

/// The angles per position of one kind of RoPE, in radians.
#[derive(Debug)]
pub(crate) struct Frequencies {
    pairing: RopePairing,
    angles: Vec<f64>,
}

impl Frequencies {
    /// `factors` (dims / 2) is used by `RopeScaling::Factors` only.
    pub(crate) fn new(rope: &Rope, factors: &[f32]) -> Self {
        let log_base = real::ln(f64::from(rope.base));
        let frequency = |i: usize| {
            let plain = real::exp(-log_base * (2 * i) as f64 / rope.dims as f64);
            match rope.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear(factor) => plain / f64::from(factor),
                RopeScaling::Factors => plain / f64::from(factors[i]),
            }
        };
        Self { pairing: rope.pairing, angles: (0..rope.dims / 2).map(frequency).collect() }
    }

    /// The rotations of rows at `positions`.
    pub(crate) fn table(&self, positions: &[usize]) -> RopeTable {
        let rotation = |position: usize, angle: f64| {
            let (sin, cos) = real::sin_cos(position as f64 * angle);
            (cos as f32, sin as f32)
        };
        let rows = positions.iter().flat_map(|p| self.angles.iter().map(|a| rotation(*p, *a)));
        RopeTable { pairing: self.pairing, pairs: self.angles.len(), rotations: rows.collect() }
    }
}

/// (cosine, sine) of every rotated pair of some rows.
#[derive(Debug)]
pub(crate) struct RopeTable {
    pairing: RopePairing,
    pairs: usize,
    rotations: Vec<(f32, f32)>,
}

impl RopeTable {
    /// Rotates the first elements of `head`, which belongs to row `row`.
    pub(crate) fn rotate(&self, row: usize, head: &mut [f32]) {
        let rotations = &self.rotations[row * self.pairs..][..self.pairs];
        match self.pairing {
            RopePairing::Interleaved => {
                for ([x, y], (cos, sin)) in head.as_chunks_mut().0.iter_mut().zip(rotations) {
                    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
                }
            }
            RopePairing::Halves => {
                let (low, high) = head.split_at_mut(self.pairs);
                for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(rotations) {
                    (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
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
        Rope { pairing, dims, base: 10_000.0, scaling }
    }

    #[test]
    fn both_pairings_rotate_as_the_framework_does() {
        let (rows, dims) = (5, 32);
        let positions: Vec<usize> = (0..rows).map(|r| 100 * r + 3).collect();
        for pairing in [RopePairing::Interleaved, RopePairing::Halves] {
            let frequencies = Frequencies::new(&rope(pairing, dims, RopeScaling::None), &[]);
            let table = frequencies.table(&positions);
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
            let mut y = x;
            y.chunks_mut(dims).enumerate().for_each(|(row, head)| table.rotate(row, head));
            assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{pairing:?}");
        }
    }

    #[test]
    fn scalings_divide_the_frequencies_and_other_elements_stay() {
        let halved = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Linear(2.0)), &[]);
        let factored = Frequencies::new(&rope(RopePairing::Halves, 4, RopeScaling::Factors), &[1.0, 8.0]);
        assert!((halved.angles[1] - 0.005).abs() < 1e-15 && (factored.angles[1] - 0.00125).abs() < 1e-15);
        assert_eq!((halved.angles[0], factored.angles[0]), (0.5, 1.0));
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        halved.table(&[9]).rotate(0, &mut head);
        assert_eq!(head[4..], [5.0, 6.0]);
        assert_ne!(head[..4], [1.0, 2.0, 3.0, 4.0]);
    }
}
