//! The short convolution before a layer's state: each channel of a row by itself, over that row and the ones before it.

use candle_core::{Result, Tensor};
use candle_nn::ops::silu;

/// silu(Σ taps · the last rows + bias) of x (rows, channels), before whose first row stand zeros; `taps` is (channels, taps).
pub(crate) fn convolved(x: &Tensor, taps: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((rows, channels), reach) = (x.dims2()?, taps.dim(1)?);
    let before = Tensor::zeros((reach - 1, channels), x.dtype(), x.device())?;
    let padded = Tensor::cat(&[&before, x], 0)?;
    let mut sum = Tensor::zeros((rows, channels), x.dtype(), x.device())?;
    for tap in 0..reach {
        let factors = taps.narrow(1, tap, 1)?.flatten_all()?;
        sum = (sum + padded.narrow(0, tap, rows)?.broadcast_mul(&factors)?)?;
    }
    match bias {
        Some(bias) => silu(&sum.broadcast_add(bias)?),
        None => silu(&sum),
    }
}
