//! Rotary position embedding: the pair i of a head's first elements turns by position · frequency(i).

use std::f64::consts::TAU;

use candle_core::{D, Result, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};
use qmesh_models::spec::{Rope, RopePairing, RopeScaling, TensorRole};

use crate::{error::OracleError, weights::Weights};

/// One kind of rotation.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pairing: RopePairing,
    /// Radians per position of each pair.
    frequencies: Vec<f64>,
    /// Factor on cosines and sines.
    magnitude: f64,
}

impl Rotation {
    /// The rotation that `rope` describes, with the factors of a model of `context` positions where it has some.
    pub(crate) fn open(weights: &Weights<'_>, rope: &Rope, context: usize) -> std::result::Result<Self, OracleError> {
        let role = match rope.scaling {
            RopeScaling::None | RopeScaling::Linear(_) | RopeScaling::Yarn { .. } => None,
            RopeScaling::Factors => Some(TensorRole::RopeFactors),
            RopeScaling::LongRope { original } if context > original => Some(TensorRole::RopeFactorsLong),
            RopeScaling::LongRope { .. } => Some(TensorRole::RopeFactorsShort),
        };
        let factors = match role {
            Some(role) => {
                // There may be more, for wider rotations.
                weights.vector(role, weights.cols(role)?)?.narrow(0, 0, rope.dims / 2)?.to_vec1::<f32>()?
            }
            None => Vec::new(),
        };
        Ok(Self::new(rope, &factors))
    }

    /// x (heads, rows, head_dim), whose first row is at `first_position`, → the same, rotated.
    pub(crate) fn forward(&self, x: &Tensor, first_position: usize) -> Result<Tensor> {
        let (_, rows, head_dim) = x.dims3()?;
        let dims = 2 * self.frequencies.len();
        let (cos, sin) = self.tables(first_position, rows, x)?;
        let rotated = x.narrow(D::Minus1, 0, dims)?.contiguous()?.unsqueeze(0)?;
        let rotated = match self.pairing {
            RopePairing::Interleaved => rope_i(&rotated, &cos, &sin)?,
            RopePairing::Halves => rope(&rotated, &cos, &sin)?,
        };
        let rotated = rotated.squeeze(0)?;
        if dims == head_dim {
            return Ok(rotated);
        }
        Tensor::cat(&[rotated, x.narrow(D::Minus1, dims, head_dim - dims)?], D::Minus1)
    }

    /// `factors` (dims / 2) belong to the scalings that come with some.
    fn new(rope: &Rope, factors: &[f32]) -> Self {
        let base = f64::from(rope.base);
        let frequency = |i: usize| {
            let plain = base.powf(-2.0 * i as f64 / rope.dims as f64);
            match rope.scaling {
                RopeScaling::None => plain,
                RopeScaling::Linear(factor) => plain / f64::from(factor),
                RopeScaling::Factors | RopeScaling::LongRope { .. } => plain / f64::from(factors[i]),
                RopeScaling::Yarn { factor, .. } => {
                    let share = yarn_share(rope, i);
                    share * plain / f64::from(factor) + (1.0 - share) * plain
                }
            }
        };
        let frequencies = (0..rope.dims / 2).map(frequency).collect();
        Self { pairing: rope.pairing, frequencies, magnitude: f64::from(rope.magnitude) }
    }

    /// Cosines and sines: (rows, dims / 2) each, on the device of `like`.
    fn tables(&self, first_position: usize, rows: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
        let table = |function: &dyn Fn(f64) -> f64| {
            let angles = (first_position..first_position + rows)
                .flat_map(|position| self.frequencies.iter().map(move |frequency| position as f64 * frequency));
            let elements = angles.map(|angle| (self.magnitude * function(angle)) as f32).collect::<Vec<_>>();
            Tensor::from_vec(elements, (rows, self.frequencies.len()), like.device())
        };
        Ok((table(&f64::cos)?, table(&f64::sin)?))
    }
}

/// How far YaRN goes over to the divided frequency for pair `i`: 0 for fast ones, 1 for slow ones, a line between them.
fn yarn_share(rope: &Rope, i: usize) -> f64 {
    let RopeScaling::Yarn { original, beta_fast, beta_slow, .. } = rope.scaling else { return 0.0 };
    let dims = rope.dims as f64;
    // The pair that turns so many times in the original context: original / (2π · base^(2i/dims)) = turns.
    let pair =
        |turns: f32| dims * (original as f64 / (TAU * f64::from(turns))).ln() / (2.0 * f64::from(rope.base).ln());
    let first = pair(beta_fast).floor().max(0.0);
    let last = pair(beta_slow).ceil().min(dims - 1.0);
    ((i as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn kind(pairing: RopePairing, dims: usize, scaling: RopeScaling) -> Rope {
        Rope { pairing, dims, base: 10_000.0, scaling, magnitude: 1.0 }
    }

    /// One head of six elements at position 3.
    fn rotated(rope: &Rope) -> Vec<f32> {
        let x = Tensor::new(&[[[1_f32, 0.0, 0.0, 2.0, 7.0, 8.0]]], &Device::Cpu).unwrap();
        let y = Rotation::new(rope, &[]).forward(&x, 3).unwrap();
        assert_eq!(y.dims(), [1, 1, 6]);
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn pairs_turn_and_what_is_beyond_them_stays() {
        // Of four elements the two pairs turn by 1 and by 0.01 a position.
        let ((s, c), (slow_s, slow_c)) = (3_f32.sin_cos(), 0.03_f32.sin_cos());
        let near = |rope, expected: [f32; 6]| {
            let y = rotated(&rope);
            assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?} for {expected:?}");
        };
        let interleaved = [c, s, -2.0 * slow_s, 2.0 * slow_c, 7.0, 8.0];
        near(kind(RopePairing::Interleaved, 4, RopeScaling::None), interleaved);
        near(kind(RopePairing::Halves, 4, RopeScaling::None), [c, -2.0 * slow_s, s, 2.0 * slow_c, 7.0, 8.0]);
        let scaled = Rope { magnitude: 1.5, ..kind(RopePairing::Interleaved, 2, RopeScaling::None) };
        near(scaled, [1.5 * c, 1.5 * s, 0.0, 2.0, 7.0, 8.0]);
    }

    #[test]
    fn scalings_divide_frequencies() {
        let frequencies =
            |scaling, factors: &[f32]| Rotation::new(&kind(RopePairing::Halves, 64, scaling), factors).frequencies;
        let plain = frequencies(RopeScaling::None, &[]);
        let ratio = |scaled: Vec<f64>, i: usize| plain[i] / scaled[i];
        assert!((ratio(frequencies(RopeScaling::Linear(4.0), &[]), 9) - 4.0).abs() < 1e-12);
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        assert!((ratio(frequencies(RopeScaling::Factors, &factors), 9) - 10.0).abs() < 1e-12);
        assert!((ratio(frequencies(RopeScaling::LongRope { original: 9 }, &factors), 31) - 32.0).abs() < 1e-12);
        // 32 turns in 512 positions are those of pair 64·ln(512 / 64π) / (2·ln 10000) = 3.2, and one turn of pair 15.3:
        // from pair 3 to pair 16 the divisor goes over from 1 to 4.
        let yarn = RopeScaling::Yarn { factor: 4.0, original: 512, beta_fast: 32.0, beta_slow: 1.0 };
        let yarn = frequencies(yarn, &[]);
        for (i, share) in [(0, 0.0), (3, 0.0), (4, 1.0 / 13.0), (15, 12.0 / 13.0), (16, 1.0), (31, 1.0)] {
            let expected = plain[i] * (1.0 - share) + plain[i] / 4.0 * share;
            assert!((yarn[i] / expected - 1.0).abs() < 1e-12, "pair {i}");
        }
    }
}
