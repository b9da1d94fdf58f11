//! Which of the engine's roundings the oracle repeats, and how activations are rounded to eight bits.
//!
//! The engine holds keys and values as f16, and takes activations as int8 where the weights are quantised. Both are part of
//! its arithmetic and no mistake. An oracle that repeats them differs by the order of sums only, except where a value lies
//! so near the border between two steps that such a difference moves it to the other one.

use candle_core::{Result, Tensor};

/// Which of the engine's roundings the oracle repeats.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rounding {
    /// How keys and values are held.
    pub cache: CacheType,
    /// How activations meet quantised weights.
    pub activations: Activations,
}

/// How keys and values are held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CacheType {
    /// As they are computed.
    F32,
    /// Rounded to f16, as the engine holds them.
    F16,
}

/// How activations meet quantised weights. Weights that are floats take them as they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activations {
    /// As they are.
    Exact,
    /// Rounded to int8 in blocks of 32, and for the head once more what that leaves, as the engine does.
    Quantised8,
}

impl Rounding {
    /// The plain f32 result.
    pub const NONE: Self = Self { cache: CacheType::F32, activations: Activations::Exact };
    /// All that the engine rounds.
    pub const ENGINE: Self = Self { cache: CacheType::F16, activations: Activations::Quantised8 };
}

/// The rows of `x` (rows, columns; whole blocks), each block of 32 elements as the sum of `terms` roundings to int8.
pub(crate) fn quantised8(x: &Tensor, terms: usize) -> Result<Tensor> {
    let mut rounded = x.flatten_all()?.to_vec1::<f32>()?;
    for block in rounded.chunks_mut(BLOCK) {
        let mut rest = block.to_vec();
        for term in 0..terms {
            let steps = nearest(&rest);
            for ((rounded, rest), step) in block.iter_mut().zip(&mut rest).zip(steps) {
                *rounded = if term == 0 { step } else { *rounded + step };
                *rest -= step;
            }
        }
    }
    Tensor::from_vec(rounded, x.shape(), x.device())
}

/// Elements that share a scale.
const BLOCK: usize = 32;

/// The block in 127 or in 126 steps to its largest magnitude, whichever has the smaller square error.
fn nearest(x: &[f32]) -> Vec<f32> {
    let largest = x.iter().fold(0_f32, |largest, x| largest.max(x.abs()));
    if !(127.0 / largest).is_finite() {
        return vec![0.0; x.len()];
    }
    let rounded = |count: f32| {
        let scale = largest / count;
        let steps = x.iter().map(|x| (x * (1.0 / scale)).round_ties_even() * scale);
        let steps: Vec<f32> = steps.collect();
        let error: f32 = x.iter().zip(&steps).map(|(x, step)| (x - step).powi(2)).sum();
        (steps, error)
    };
    let ((fine, fine_error), (coarse, coarse_error)) = (rounded(127.0), rounded(126.0));
    if coarse_error < fine_error { coarse } else { fine }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rounded(x: &[f32], terms: usize) -> Vec<f32> {
        let x = Tensor::from_slice(x, (1, x.len()), &Device::Cpu).unwrap();
        quantised8(&x, terms).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn each_block_has_its_own_steps_and_its_largest_element_right() {
        let mut x = vec![0.0; 96];
        // With 127 steps of 0.01 all of the first block are hit; with 126 steps of 0.01 all of the second.
        (x[0], x[1], x[2]) = (1.27, -0.50, 0.014);
        (x[32], x[33]) = (-1.26, 0.03);
        let y = rounded(&x, 1);
        for (at, expected) in [(0, 1.27), (1, -0.50), (2, 0.01), (32, -1.26), (33, 0.03)] {
            assert!((y[at] - expected).abs() < 1e-6, "{at}: {} for {expected}", y[at]);
        }
        assert!(y[64..].iter().all(|y| *y == 0.0), "a block of zeros stays one");
    }

    #[test]
    fn a_second_term_holds_what_the_first_one_leaves() {
        let x: Vec<f32> = (0..64).map(|i| ((i * 37) % 64) as f32 / 32.0 - 1.0).collect();
        let largest = |y: Vec<f32>| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0_f32, f32::max);
        let (one, two) = (largest(rounded(&x, 1)), largest(rounded(&x, 2)));
        // Half a step, and half a step of what a term leaves.
        assert!(one < 0.51 / 126.0 && one > 0.3 / 127.0, "{one}");
        assert!(two < 0.51 * one / 126.0, "{two} of {one}");
    }
}
