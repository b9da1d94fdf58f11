//! The feed-forward half of a block.

use candle_core::{Result, Tensor};
use qmesh_models::spec::Activation;
use rayon::prelude::*;

use crate::{
    kernel::{lanes::Simd, math::Gate},
    linear::{Linear, Norm, project, project_add},
    ops,
};

/// x + norm(down(act(gate(norm(x))) · up(norm(x)))).
#[derive(Debug)]
pub(crate) struct GatedFfn {
    pub(crate) activation: Activation,
    pub(crate) norm: Norm,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) post_norm: Option<Norm>,
}

impl GatedFfn {
    /// x (rows, hidden) → (rows, hidden)
    pub(crate) fn forward(&self, simd: Simd, x: &Tensor) -> Result<Tensor> {
        let both = project(simd, x, Some(&self.norm), &[&self.gate, &self.up])?; // (rows, 2 inner)
        let inner = gated(simd, self.activation, &both, self.down.matrix.cols)?; // (rows, inner)
        project_add(simd, &inner, &self.down, self.post_norm.as_ref(), x)
    }
}

/// The gate's activation times the other half of each row: (rows, 2 inner) → (rows, inner).
fn gated(simd: Simd, activation: Activation, both: &Tensor, inner: usize) -> Result<Tensor> {
    ops::map("gate", both, |both| {
        let mut out = vec![0.0; both.len() / 2];
        let rows = out.par_chunks_mut(inner).zip(both.par_chunks(2 * inner));
        rows.with_min_len(2).for_each(|(out, both)| {
            let (gate, up) = both.split_at(inner);
            simd.run(Gate { activation, gate, up, out });
        });
        out
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::kernel::matrix::tests::{noise, random_matrix};

    #[test]
    fn the_half_is_what_plain_framework_operations_make_of_it() {
        let (rows, hidden, inner, simd) = (3, 64, 96, Simd::available()[0]);
        let linear = |outputs, inputs| {
            let (matrix, weight) = random_matrix(TensorType::F32, outputs, inputs);
            (Linear { matrix, bias: None }, weight.t().unwrap())
        };
        let ((gate, gate_t), (up, up_t), (down, down_t)) =
            (linear(inner, hidden), linear(inner, hidden), linear(hidden, inner));
        let x = Tensor::from_vec(noise(rows * hidden, 1), (rows, hidden), &Device::Cpu).unwrap();
        let gain = Tensor::from_vec(noise(hidden, 2), hidden, &Device::Cpu).unwrap();
        let norm = Norm { gain: gain.to_vec1().unwrap(), eps: 1e-5 };
        let ffn = GatedFfn { activation: Activation::Silu, norm, gate, up, down, post_norm: None };
        let ours = ffn.forward(simd, &x).unwrap();

        let normed = candle_nn::ops::rms_norm(&x, &gain, 1e-5).unwrap();
        let inner = (normed.matmul(&gate_t).unwrap().silu().unwrap() * normed.matmul(&up_t).unwrap()).unwrap();
        let oracle = (inner.matmul(&down_t).unwrap() + &x).unwrap();
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error < 1e-4, "{error}");
    }
}
