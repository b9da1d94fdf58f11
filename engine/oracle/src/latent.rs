//! Latent attention in the plain form: each head's keys and values are made of the latents of all positions.
//!
//! The engine multiplies queries by what makes keys instead, and what was attended to by what makes values. Where these
//! matrices are quantised, it rounds other things to int8 than could be rounded here, so these products are exact.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use qmesh_models::spec::{HeadMatrices, LatentQueries, LatentSpec, LayerIndex, LayerTensor, Positions, Window};

use crate::{
    cache::KeysValues,
    error::OracleError,
    indexer::Indexer,
    linear::Linear,
    mask::mask,
    norm::Norm,
    rope::Rotation,
    rounding::CacheType,
    temperature::tempered,
    weights::{Weights, of_layer},
};

/// The latent attention of one layer.
#[derive(Clone, Debug)]
pub(crate) struct LatentAttention {
    spec: LatentSpec,
    queries: Queries,
    latent: Linear,
    latent_norm: Norm,
    /// (heads, latent_dim, plain_dim)
    keys: Tensor,
    /// (heads, latent_dim, value_dim)
    values: Tensor,
    rotation: Option<Rotation>,
    output: Linear,
    cached_as: CacheType,
    indexer: Option<Box<Indexer>>,
}

/// What makes queries.
#[derive(Clone, Debug)]
enum Queries {
    Direct(Linear),
    Latent { down: Linear, norm: Norm, up: Linear },
}

impl LatentAttention {
    /// The attention of `layer`, whose norms have `eps`.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &LatentSpec,
        eps: f32,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{AttnOutput, KB, KvA, KvANorm, KvB, Q, QA, QANorm, QB, VB};
        let LatentSpec { heads, latent_dim, plain_dim, value_dim, .. } = *spec;
        let (hidden, width) = (weights.spec.hidden, heads * spec.query_dim());
        let linear = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        let norm = |tensor, len| Norm::rms(weights, of_layer(layer, tensor), len, eps);
        let queries = match spec.queries {
            LatentQueries::Direct => Queries::Direct(linear(Q, [width, hidden])?),
            LatentQueries::Latent(rank) => Queries::Latent {
                down: linear(QA, [rank, hidden])?,
                norm: norm(QANorm, rank)?,
                up: linear(QB, [width, rank])?,
            },
        };
        let (keys, values) = match spec.matrices {
            HeadMatrices::Apart => {
                let keys = weights.matrix(of_layer(layer, KB), heads * latent_dim, plain_dim)?;
                let values = weights.matrix(of_layer(layer, VB), heads * value_dim, latent_dim)?;
                (keys.reshape((heads, latent_dim, plain_dim))?, values.reshape((heads, value_dim, latent_dim))?)
            }
            HeadMatrices::Joined => {
                let both = weights.matrix(of_layer(layer, KvB), heads * (plain_dim + value_dim), latent_dim)?;
                let both = both.reshape((heads, plain_dim + value_dim, latent_dim))?;
                let keys = both.narrow(1, 0, plain_dim)?.transpose(1, 2)?.contiguous()?;
                (keys, both.narrow(1, plain_dim, value_dim)?)
            }
        };
        let rotation =
            spec.rope.as_ref().map(|rope| Rotation::open(weights, rope, weights.spec.context)).transpose()?;
        let indexer = match (spec.indexer(), spec.queries) {
            (Some(indexer), LatentQueries::Latent(rank)) => {
                Some(Box::new(Indexer::open(weights, layer, indexer, rank)?))
            }
            (None, _) | (_, LatentQueries::Direct) => None,
        };
        Ok(Self {
            indexer,
            queries,
            latent: linear(KvA, [spec.key_dim(), hidden])?,
            latent_norm: norm(KvANorm, latent_dim)?,
            keys,
            values: values.transpose(1, 2)?.contiguous()?,
            rotation,
            output: linear(AttnOutput, [hidden, heads * value_dim])?,
            cached_as: weights.rounding.cache,
            spec: spec.clone(),
        })
    }

    /// x (rows, hidden), whose first row is at `first_position`, → (rows, hidden). The rows' latents and rotated keys are in
    /// the cache afterwards, and in `chosen` the mask of the positions that the layer chooses, if it does.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        first_position: usize,
        cache: &mut KeysValues,
        chosen: &mut Option<Tensor>,
    ) -> Result<Tensor> {
        let LatentSpec { heads, latent_dim, plain_dim, rope_dim, scale, .. } = self.spec;
        let rows = x.dim(0)?;
        let (queries, query_latents) = match &self.queries {
            Queries::Direct(linear) => (linear.forward(x)?, None),
            Queries::Latent { down, norm, up } => {
                let latents = norm.forward(&down.forward(x)?)?;
                (up.forward(&latents)?, Some(latents))
            }
        };
        let queries = queries.reshape((rows, heads, plain_dim + rope_dim))?.transpose(0, 1)?;
        let plain = queries.narrow(2, 0, plain_dim)?.contiguous()?;
        let rotated = self.placed(queries.narrow(2, plain_dim, rope_dim)?.contiguous()?, first_position)?;

        let latent = self.latent.forward(x)?.unsqueeze(0)?;
        let key = self.placed(latent.narrow(2, latent_dim, rope_dim)?.contiguous()?, first_position)?;
        let latent = self.latent_norm.forward(&latent.narrow(2, 0, latent_dim)?)?;
        // An indexer's keys stand behind the rotated ones.
        let key = match &self.indexer {
            Some(indexer) => Tensor::cat(&[key, indexer.keys(x, first_position)?], 2)?,
            None => key,
        };
        let (latents, rotated_keys) = cache.append(&latent, &key, self.cached_as)?; // (1, positions, …)
        if let (Some(indexer), Some(query_latents)) = (&self.indexer, query_latents) {
            let keys = rotated_keys.narrow(2, rope_dim, indexer.key_dim())?;
            *chosen = Some(indexer.mask(x, &query_latents, &keys, first_position)?);
        }
        let mask = match (&self.spec.positions, &*chosen) {
            (Positions::AsBefore | Positions::Chosen(_), Some(chosen)) => chosen.clone(),
            (Positions::All, _) | (_, None) => mask(rows, first_position, Window::Full, x.device())?,
        };
        let rotated_keys = rotated_keys.narrow(2, 0, rope_dim)?;
        let positions = latents.dim(1)?;
        let each = |x: &Tensor, dim: usize| x.broadcast_as((heads, positions, dim))?.contiguous();
        let (latents, rotated_keys) = (each(&latents, latent_dim)?, each(&rotated_keys, rope_dim)?);
        let (keys, values) = (latents.matmul(&self.keys)?, latents.matmul(&self.values)?);

        let scores = (plain.matmul(&keys.t()?.contiguous()?)? + rotated.matmul(&rotated_keys.t()?.contiguous()?)?)?;
        let scores = tempered(&scores, self.spec.temperature, first_position)?;
        let shares = softmax_last_dim(&(scores * f64::from(scale))?.broadcast_add(&mask)?)?;
        let attended = shares.matmul(&values)?; // (heads, rows, value_dim)
        self.output.forward(&attended.transpose(0, 1)?.contiguous()?.flatten_from(1)?)
    }

    /// Rotated by position, where the layer knows positions.
    fn placed(&self, x: Tensor, first_position: usize) -> Result<Tensor> {
        match &self.rotation {
            Some(rotation) => rotation.forward(&x, first_position),
            None => Ok(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn linear(weight: &[[f32; 2]]) -> Linear {
        let weight = Tensor::new(weight.as_flattened(), &Device::Cpu).unwrap().reshape((weight.len(), 2)).unwrap();
        Linear { weight, bias: None, input_terms: None }
    }

    #[test]
    fn heads_make_their_keys_and_values_of_the_latent() {
        // Two heads with queries (x₀, x₁); the latent of (x₀, x₁) is √2 · x₀ / |(x₀, x₀)| = ±1 in both elements, and the
        // rotated key, which nothing turns here, x₁. Head h's plain key is the latent times 1 + h, its value 10 times that.
        let spec = LatentSpec {
            heads: 2,
            queries: LatentQueries::Direct,
            matrices: HeadMatrices::Apart,
            latent_dim: 2,
            plain_dim: 1,
            rope_dim: 1,
            value_dim: 1,
            scale: 0.5,
            temperature: None,
            rope: None,
            positions: Positions::All,
        };
        let of_heads = |values: [f32; 4]| Tensor::new(&values, &Device::Cpu).unwrap().reshape((2, 2, 1)).unwrap();
        let attention = LatentAttention {
            spec,
            queries: Queries::Direct(linear(&[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])),
            latent: linear(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
            latent_norm: Norm::Rms { gain: Tensor::ones(2, DType::F32, &Device::Cpu).unwrap(), eps: 0.0 },
            keys: of_heads([1.0, 0.0, 1.0, 1.0]),
            values: of_heads([10.0, 0.0, 10.0, 10.0]),
            rotation: None,
            output: linear(&[[1.0, 0.0], [0.0, 1.0]]),
            cached_as: CacheType::F32,
            indexer: None,
        };
        let x = linear(&[[3.0, 1.0], [-2.0, 0.5]]).weight;
        let y = attention.forward(&x, 0, &mut KeysValues::default(), &mut None).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y[0], [10.0, 20.0], "the first position sees itself alone");
        // Scores of the second: 0.5 · (−2 · (1 + h) · ±1 + 0.5 · the rotated key).
        for (head, y) in y[1].iter().enumerate() {
            let times = 1.0 + head as f64;
            let [first, second] = [0.5 * (-2.0 * times + 0.5), 0.5 * (2.0 * times + 0.25)].map(f64::exp);
            let expected = 10.0 * times * (first - second) / (first + second);
            assert!((f64::from(*y) - expected).abs() < 1e-4, "head {head}: {y} for {expected}");
        }
    }
}
