//! The indexer of sparse attention: scores of all positions, and a mask that leaves each row the highest ones.

use candle_core::{DType, Result, Tensor};
use qmesh_models::spec::{IndexerSpec, LayerIndex, LayerTensor, NormKind, NormSpec};

use crate::{
    error::OracleError,
    linear::Linear,
    norm::Norm,
    rope::Rotation,
    weights::{Weights, of_layer},
};

/// The indexer of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Indexer {
    spec: IndexerSpec,
    queries: Linear,
    key: Linear,
    key_norm: Norm,
    weights: Linear,
    rotation: Rotation,
}

impl Indexer {
    /// That of `layer`, whose queries have a latent of `rank` elements.
    pub(crate) fn open(
        weights: &Weights<'_>,
        layer: LayerIndex,
        spec: &IndexerSpec,
        rank: usize,
    ) -> std::result::Result<Self, OracleError> {
        use LayerTensor::{IndexKey, IndexKeyNorm, IndexKeyNormBias, IndexQueries, IndexWeights};
        let hidden = weights.spec.hidden;
        let linear = |tensor, shape| Linear::open(weights, of_layer(layer, tensor), None, shape);
        let norm = [IndexKeyNorm, IndexKeyNormBias].map(|tensor| of_layer(layer, tensor));
        Ok(Self {
            queries: linear(IndexQueries, [spec.queries(), rank])?,
            key: linear(IndexKey, [spec.head_dim, hidden])?,
            key_norm: Norm::open(weights, norm, spec.head_dim, NormSpec { kind: NormKind::Layer, eps: spec.eps })?,
            weights: linear(IndexWeights, [spec.heads, hidden])?,
            rotation: Rotation::open(weights, &spec.rope, weights.spec.context)?,
            spec: spec.clone(),
        })
    }

    /// Elements of a key.
    pub(crate) fn key_dim(&self) -> usize {
        self.spec.head_dim
    }

    /// The keys of x (rows, hidden), whose first row is at `first_position`: (1, rows, head_dim).
    pub(crate) fn keys(&self, x: &Tensor, first_position: usize) -> Result<Tensor> {
        let keys = self.key_norm.forward(&self.key.forward(x)?)?.unsqueeze(0)?;
        self.rotation.forward(&keys, first_position)
    }

    /// What is added to scores of attention: 0 where a row of x (rows, hidden), the latent of whose queries is given, attends to a
    /// position, −∞ where it does not. (rows, positions), of which (1, positions, head_dim) are the keys.
    pub(crate) fn mask(&self, x: &Tensor, latents: &Tensor, keys: &Tensor, first_position: usize) -> Result<Tensor> {
        let IndexerSpec { heads, head_dim, used, .. } = self.spec;
        let (rows, positions) = (x.dim(0)?, keys.dim(1)?);
        let queries = self.queries.forward(latents)?.reshape((rows, heads, head_dim))?.transpose(0, 1)?;
        let queries = self.rotation.forward(&queries.contiguous()?, first_position)?.to_dtype(DType::F64)?;
        let keys = keys.broadcast_as((heads, positions, head_dim))?.contiguous()?.to_dtype(DType::F64)?;
        let products = queries.matmul(&keys.transpose(1, 2)?.contiguous()?)?.relu()?; // (heads, rows, positions)
        let weights = self.weights.forward(x)?.t()?.contiguous()?.unsqueeze(2)?.to_dtype(DType::F64)?;
        let scores = products.broadcast_mul(&weights)?.sum(0)?.to_vec2::<f64>()?;
        let mut added = Vec::with_capacity(rows * positions);
        for (row, scores) in scores.iter().enumerate() {
            let seen = first_position + row + 1;
            let mut order: Vec<usize> = (0..seen).collect();
            // The sort is stable: of equal ones the earlier stays in front.
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            order.truncate(used);
            added.extend((0..positions).map(|at| if order.contains(&at) { 0.0 } else { f32::NEG_INFINITY }));
        }
        Tensor::from_vec(added, (rows, positions), x.device())
    }
}
