//! The feed-forward half of a block.

use candle_core::{Result, Tensor};
use qmesh_models::spec::Activation;

use crate::{
    kernel::Machine,
    linear::{Linear, Norm, gated},
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
    pub(crate) fn forward(&self, machine: Machine<'_>, x: &Tensor) -> Result<Tensor> {
        let linears = [&self.gate, &self.up, &self.down];
        gated(machine, x, &self.norm, linears, self.activation, self.post_norm.as_ref())
    }
}
#[cfg(test)]
mod tests {
    use candle_core::Device;
    use qmesh_models::tensor::TensorType;

    use super::*;
    use crate::kernel::{
        lanes::Simd,
        matrix::tests::{noise, random_matrix},
        team::Team,
    };

    #[test]
    fn the_half_is_what_plain_framework_operations_make_of_it() {
        let (rows, hidden, inner, team) = (3, 64, 96, Team::new(2).unwrap());
        let machine = Machine { simd: Simd::available()[0], team: &team };
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
        let ours = ffn.forward(machine, &x).unwrap();

        let normed = candle_nn::ops::rms_norm(&x, &gain, 1e-5).unwrap();
        let inner = (normed.matmul(&gate_t).unwrap().silu().unwrap() * normed.matmul(&up_t).unwrap()).unwrap();
        let oracle = (inner.matmul(&down_t).unwrap() + &x).unwrap();
        let error: f32 = (ours - oracle).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
        assert!(error < 1e-4, "{error}");
    }
}
