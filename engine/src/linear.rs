//! Products with weights, with what belongs to them: the norm before, the bias, the norm and the residual after.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::{
    kernel::{
        lanes::Simd,
        matrix::Matrix,
        norm::RmsNorm,
        product::{Inputs, Tiles},
    },
    ops,
};

/// An RMS norm.
#[derive(Debug)]
pub(crate) struct Norm {
    pub(crate) gain: Vec<f32>,
    pub(crate) eps: f32,
}

/// A weight matrix and its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) matrix: Matrix,
    pub(crate) bias: Option<Vec<f32>>,
}

impl Norm {
    /// Normalises rows in place; `rows` may also be heads.
    pub(crate) fn apply(&self, simd: Simd, rows: &mut [f32]) {
        simd.run(RmsNorm { x: rows, gain: &self.gain, eps: self.eps });
    }
}

/// The products of the (normalised) rows of `x` with each matrix, side by side: (rows, all outputs).
pub(crate) fn project(simd: Simd, x: &Tensor, norm: Option<&Norm>, linears: &[&Linear]) -> Result<Tensor> {
    ops::map("project", x, |x| {
        let cols = linears[0].matrix.cols;
        let mut normed = Vec::new();
        let x = match norm {
            Some(norm) => {
                normed.extend_from_slice(x);
                normed.par_chunks_mut(cols).with_min_len(4).for_each(|row| norm.apply(simd, row));
                &normed
            }
            None => x,
        };
        let mut out = products(simd, x, linears);
        if linears.iter().any(|l| l.bias.is_some()) {
            let width = linears.iter().map(|l| l.matrix.rows).sum();
            out.par_chunks_mut(width).with_min_len(16).for_each(|row| add_biases(linears, row));
        }
        out
    })
}

/// residual + norm(W·x): (rows, hidden).
pub(crate) fn project_add(
    simd: Simd,
    x: &Tensor,
    linear: &Linear,
    norm: Option<&Norm>,
    residual: &Tensor,
) -> Result<Tensor> {
    ops::map2("project_add", x, residual, |x, residual| {
        let width = linear.matrix.rows;
        let mut out = products(simd, x, &[linear]);
        let rows = out.par_chunks_mut(width).zip(residual.par_chunks(width));
        rows.with_min_len(16).for_each(|(row, residual)| {
            add_biases(&[linear], row);
            if let Some(norm) = norm {
                norm.apply(simd, row);
            }
            row.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
        });
        out
    })
}

fn products(simd: Simd, x: &[f32], linears: &[&Linear]) -> Vec<f32> {
    let matrices: Vec<&Matrix> = linears.iter().map(|l| &l.matrix).collect();
    Tiles::products(simd, &Inputs::new(simd, x, matrices[0].cols, &matrices), &matrices).into_rows()
}

fn add_biases(linears: &[&Linear], mut row: &mut [f32]) {
    for linear in linears {
        let (own, others) = row.split_at_mut(linear.matrix.rows);
        if let Some(bias) = &linear.bias {
            own.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        row = others;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::kernel::matrix::tests::{noise, random_matrix};

    fn assert_near(ours: &Tensor, oracle: &Tensor, tolerance: f32) {
        assert_eq!(ours.dims(), oracle.dims());
        let largest: f32 = oracle.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error <= tolerance * largest, "{error} of {largest}");
    }

    #[test]
    fn projections_are_those_of_plain_framework_operations() {
        let (rows, hidden, simd) = (5, 256, Simd::available()[0]);
        let x = Tensor::from_vec(noise(rows * hidden, 1), (rows, hidden), &Device::Cpu).unwrap();
        let norm = Norm { gain: noise(hidden, 2), eps: 1e-6 };
        let gain = Tensor::from_slice(&norm.gain, hidden, &Device::Cpu).unwrap();
        for (dtype, tolerance) in [(TensorType::F16, 1e-5), (TensorType::Q4K, 2e-2), (TensorType::Q8_0, 2e-2)] {
            let ((a, a_weight), (b, b_weight)) = (random_matrix(dtype, 24, hidden), random_matrix(dtype, 40, hidden));
            let a = Linear { matrix: a, bias: None };
            let b = Linear { matrix: b, bias: Some(noise(40, 3)) };
            let ours = project(simd, &x, Some(&norm), &[&a, &b]).unwrap();
            let normed = candle_nn::ops::rms_norm(&x, &gain, 1e-6).unwrap();
            let bias = Tensor::from_slice(b.bias.as_ref().unwrap(), 40, &Device::Cpu).unwrap();
            let second = normed.matmul(&b_weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
            let first = normed.matmul(&a_weight.t().unwrap()).unwrap();
            assert_near(&ours, &Tensor::cat(&[first, second], 1).unwrap(), tolerance);

            let (down, down_weight) = random_matrix(dtype, hidden, hidden);
            let ours = project_add(simd, &x, &Linear { matrix: down, bias: None }, Some(&norm), &x).unwrap();
            let product = x.matmul(&down_weight.t().unwrap()).unwrap();
            let oracle = (candle_nn::ops::rms_norm(&product, &gain, 1e-6).unwrap() + &x).unwrap();
            assert_near(&ours, &oracle, tolerance);
        }
    }
}
