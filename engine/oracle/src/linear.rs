//! A product with a weight matrix: y = W·x + b.

use candle_core::{Result, Tensor};
use qmesh_models::spec::TensorRole;

use crate::{error::OracleError, rounding::quantised8, weights::Weights};

/// A weight matrix and its bias.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    /// (outputs, inputs)
    pub(crate) weight: Tensor,
    /// (outputs)
    pub(crate) bias: Option<Tensor>,
    /// The rows that come in are rounded to so many int8 terms.
    pub(crate) input_terms: Option<usize>,
}

impl Linear {
    /// The product with the matrix of `role`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        role: TensorRole,
        bias: Option<TensorRole>,
        [outputs, inputs]: [usize; 2],
    ) -> std::result::Result<Self, OracleError> {
        Ok(Self {
            weight: weights.matrix(role, outputs, inputs)?,
            bias: bias.map(|role| weights.vector(role, outputs)).transpose()?,
            input_terms: weights.input_terms(role)?,
        })
    }

    /// x (rows, inputs) → (rows, outputs)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = match self.input_terms {
            Some(terms) => quantised8(x, terms)?.matmul(&self.weight.t()?)?,
            None => x.matmul(&self.weight.t()?)?,
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_row_meets_each_output_and_its_bias() {
        let weight = Tensor::new(&[[1_f32, 2.0], [0.0, -1.0], [3.0, 0.5]], &Device::Cpu).unwrap();
        let bias = Some(Tensor::new(&[0.0_f32, 10.0, -1.0], &Device::Cpu).unwrap());
        let x = Tensor::new(&[[1_f32, 1.0], [2.0, -4.0]], &Device::Cpu).unwrap();
        let y = Linear { weight, bias, input_terms: None }.forward(&x).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[3.0, 9.0, 2.5], [-6.0, 14.0, 3.0]]);
    }
}
