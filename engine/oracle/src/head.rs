//! From the last hidden state to logits: norm, product, scale and cap.

use candle_core::{Result, Tensor};
use qmesh_models::spec::{HeadMatrix, TensorRole};

use crate::{error::OracleError, linear::Linear, norm::Norm, weights::Weights};

/// The weights of the head.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    norm: Norm,
    matrix: Linear,
    scale: f32,
    soft_cap: Option<f32>,
}

impl Head {
    /// The model's head. Where it is tied and the shard embeds as well, `table` is what it embeds with: (vocab, hidden).
    pub(crate) fn open(weights: &Weights<'_>, table: Option<&Tensor>) -> std::result::Result<Self, OracleError> {
        let (hidden, vocab, spec) = (weights.spec.hidden, weights.spec.vocab, &weights.spec.head);
        let role = match spec.matrix {
            HeadMatrix::Tied => TensorRole::Embedding,
            HeadMatrix::Own => TensorRole::Output,
        };
        let weight = match table.filter(|_| role == TensorRole::Embedding) {
            Some(table) => table.clone(),
            None => weights.matrix(role, vocab, hidden)?,
        };
        // What one rounding of these rows would cost goes straight into the logits: the engine takes them in two terms.
        let input_terms = weights.input_terms(role)?.map(|_| 2);
        Ok(Self {
            norm: Norm::open(weights, [TensorRole::OutputNorm, TensorRole::OutputNormBias], hidden, spec.norm)?,
            matrix: Linear { weight, bias: None, input_terms },
            scale: spec.logit_scale,
            soft_cap: spec.soft_cap,
        })
    }

    /// x (rows, hidden) → (rows, vocab)
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let logits = (self.matrix.forward(&self.norm.forward(x)?)? * f64::from(self.scale))?;
        match self.soft_cap.map(f64::from) {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn logits_are_scaled_before_they_are_capped() {
        let norm = Norm::Rms { gain: Tensor::ones(2, DType::F32, &Device::Cpu).unwrap(), eps: 0.0 };
        let weight = Tensor::new(&[[1_f32, 0.0], [0.0, 10.0], [-1.0, 1.0]], &Device::Cpu).unwrap();
        let matrix = Linear { weight, bias: None, input_terms: None };
        let x = Tensor::new(&[[3_f32, 4.0]], &Device::Cpu).unwrap();
        let root = 12.5_f32.sqrt();
        let plain = [3.0 / root, 40.0 / root, 1.0 / root];
        for (scale, soft_cap) in [(1.0, None), (0.25, None), (0.25, Some(2.0_f32))] {
            let head = Head { norm: norm.clone(), matrix: matrix.clone(), scale, soft_cap };
            let logits = head.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (logit, plain) in logits.into_iter().zip(plain) {
                let scaled = scale * plain;
                let expected = soft_cap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
                assert!((logit - expected).abs() < 1e-5, "{logit} for {expected}");
            }
        }
    }
}
